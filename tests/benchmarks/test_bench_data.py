"""The benchmarks of reading, scoring and start-up at tiny sizes: equal results, and consistent figures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.plain_pickle import is_plain_pickle
from sam4mllm.data.reading import read_dataset, split_names
from tests.scripts import load_script


def _rows(name: str, file: Path, *arguments: str) -> list[dict[str, Any]]:
    load_script(name).main([*arguments, "--repeats", "1", "--device", "cpu", "--json", str(file)])
    return json.loads(file.read_text())["rows"]


def test_every_reader_returns_the_samples_of_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows("bench_reading", tmp_path / "reading.json", "--refs", "20")
    assert [row["same"] for row in rows] == [1.0] * 3 and {row["items"] for row in rows} == {48}
    assert "another process of the machine" in capsys.readouterr().out


def test_samples_that_differ_are_noticed() -> None:
    tool = load_script("bench_reading")
    theirs = [
        {"id": "a", "phrase": "left", "mask": {"counts": b"1"}},
        {"id": "b", "phrase": "x", "mask": {"counts": b"2"}},
    ]
    changed = [theirs[0], {**theirs[1], "mask": {"counts": b"3"}}]
    assert tool.same(theirs, theirs) == 1 and tool.same(theirs, changed) == 0.5 and tool.same(theirs, theirs[:1]) == 0


def test_the_generated_files_have_the_form_and_proportions_of_refcoco(tmp_path: Path) -> None:
    load_script("refcoco_size").write_refcoco(tmp_path, 50)
    content = (tmp_path / "refcoco/refs(unc).p").read_bytes()
    assert content.startswith(b"(lp") and b"S'sent_ids'" in content and is_plain_pickle(content)
    refs = pickle.loads(content, encoding="latin1")
    assert [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]] == list(range(142))
    instances = json.loads((tmp_path / "refcoco/instances.json").read_text())
    assert (len(instances["images"]), len(instances["annotations"])) == (20, 197)
    assert split_names("refcoco", tmp_path) == ["train", "val", "testA", "testB"]
    sample = read_dataset("refcoco", tmp_path, "val")[0]
    assert sample.image.is_file() and sample.has_masks


def test_both_scorers_compute_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows("bench_score", tmp_path / "score.json", "--predictions", "12")
    assert [row["same"] for row in rows] == [1.0, 1.0] and {row["items"] for row in rows} == {12}
    assert "NumPy, decoded masks" in capsys.readouterr().out


def test_figures_that_differ_are_noticed() -> None:
    tool = load_script("bench_score")
    figures = dict.fromkeys(tool.FIGURES, 0.5)
    assert tool.same(figures, figures) == 1 and tool.same(figures, {**figures, "giou": 0.5001}) == 0


def test_starts_are_timed_beside_python_and_the_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_script("bench_start")
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(tool, "start", lambda *arguments: started.append(arguments))
    rows = _rows("bench_start", tmp_path / "start.json")
    assert [row["work"] for row in rows] == ["--help"] * 2 + ["segment"] * 2
    assert ("-m", "sam4mllm", "--help") in started and started[-1][:4] == ("-m", "sam4mllm", "segment", "shapes")
    assert "imports of the libraries" in capsys.readouterr().out


def test_a_start_that_fails_ends_the_benchmark() -> None:
    tool = load_script("bench_start")
    assert tool.start("-c", "print(1)") == "1\n"
    with pytest.raises(tool.subprocess.CalledProcessError):
        tool.start("-c", "raise SystemExit(2)")
