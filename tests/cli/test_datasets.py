"""`convert`: the file that it writes is scored as its source is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from tests.data.tiny_datasets import IMAGES, annotation, image_record, ref, write_image, write_instances, write_refs


def test_a_converted_data_set_gets_equal_scores(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    file = tmp_path / "own.jsonl"
    assert main(["convert", *source, "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 3 phrases about 1 images\n"
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "refcoco/val/1/10", "status": "no_object"}))
    scores = []
    for data in (source, ["--dataset", "jsonl", "--path", str(file), "--protocol", "refcoco"]):
        assert main(["score", str(tmp_path / "p.jsonl"), *data, "--json", "-"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    of_source, of_own = ({k: v for k, v in each.items() if k not in ("dataset", "split")} for each in scores)
    assert of_source == of_own and (scores[1]["dataset"], scores[1]["split"]) == ("jsonl", "own")
    assert main(["convert", *source, "-o", str(file), "--limit", "2"]) == 0
    assert len(file.read_text().splitlines()) == 2


def test_convert_does_not_overwrite_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a.png")
    source = tmp_path / "own.jsonl"
    source.write_text(json.dumps({"image": "a.png", "phrase": "nothing"}) + "\n")
    before = source.read_bytes()
    assert main(["convert", "--dataset", "jsonl", "--path", str(source), "-o", str(source)]) == 2
    assert "own.jsonl: is read by this command; give another file with --output" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["phrases.jsonl", "path.jsonl", "images.jsonl", "split"])
def test_an_error_names_the_file_even_if_it_is_called_like_an_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text('{"image": 3}\n')
    assert main(["convert", "--dataset", "jsonl", "--path", name, "-o", "out.jsonl"]) == 2
    assert capsys.readouterr().err.startswith(f"sam4mllm: error: {name}: 1 bad line: line 1: ")


def test_convert_counts_the_images_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_instances(tmp_path / "refcoco", [image_record(n) for n in (1, 2, 3)], [annotation(n, n) for n in (1, 2, 3)])
    write_refs(tmp_path / "refcoco", [ref(n, n, n, "val", "it", "that") for n in (1, 2, 3)])
    write_image(tmp_path / IMAGES / image_record(2)["file_name"])
    source = ["--dataset", "refcoco", "--root", str(tmp_path), "--split", "val"]
    assert main(["convert", *source, "-o", str(tmp_path / "own.jsonl")]) == 0
    printed = capsys.readouterr()
    assert "6 phrases about 3 images" in printed.out
    missing = tmp_path / IMAGES / image_record(1)["file_name"]
    assert f"note: 2 of the 3 images do not exist, the first one is {missing}; name their folder" in printed.err
