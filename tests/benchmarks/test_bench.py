"""The benchmarks on tiny random models: each variant gives its baseline's results, and the figures are consistent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.testing import save_tiny_mllm, save_tiny_sam
from tests.scripts import load_script
from tests.test_readme import commands

PAGE = Path(__file__).parents[2] / "docs/performance.md"


def test_every_variant_scores_groups_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("bench_targets")
    arguments = ["--checkpoint", str(save_tiny_sam(tmp_path / "sam.pth")), "--device", "cpu", "--repeats", "1"]
    arguments += ["--objects", "3", "--groups", "5", "--batch-sizes", "2", "64", "--json", str(tmp_path / "new/t.json")]
    tool.main(arguments)
    record: dict[str, Any] = json.loads((tmp_path / "new/t.json").read_text())
    assert list(record["ways"]) == [tool.ONE, tool.ALL, "sam4mllm, 2 prompts at once", "sam4mllm, 64 prompts at once"]
    one, all_at_once = record["ways"][tool.ONE], record["ways"][tool.ALL]
    for way in record["ways"].values():
        assert way["same_iou"] == 1.0
        assert way["times_faster_than_one"] == pytest.approx(one["ms_an_object"] / way["ms_an_object"])
        assert way["times_faster_than_all"] == pytest.approx(all_at_once["ms_an_object"] / way["ms_an_object"])
    printed = capsys.readouterr().out
    assert "3 objects" in printed and all(f"\n{name} " in printed for name in record["ways"])


def test_the_requested_number_of_shapes_is_timed() -> None:
    tool = load_script("bench_targets")
    for count in (1, 7, 12):
        assert sum(len(scene.shapes) for scene in tool.scenes_of(count, seed=0)) == count


def test_every_batch_size_writes_the_same_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("bench_generate")
    base = save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    arguments = ["--base", str(base), "--questions", "5", "--batch-sizes", "3", "8", "--max-new-tokens", "4"]
    tool.main([*arguments, "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "g.json")])
    record: dict[str, Any] = json.loads((tmp_path / "g.json").read_text())
    # The batch of one is the baseline and is always timed.
    assert list(record["batch_sizes"]) == ["1", "3", "8"]
    for figures in record["batch_sizes"].values():
        assert figures["same_answer"] == 1.0 and 0 <= figures["cut_off"] <= 5
        ratio = record["batch_sizes"]["1"]["ms_an_answer"] / figures["ms_an_answer"]
        assert figures["times_faster_than_1"] == pytest.approx(ratio)
    assert "batch of 8" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bench_targets", "bench_generate"])
def test_bad_options_end_with_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script(name)
    with pytest.raises(SystemExit) as ended:
        tool.main(["--repeats", "0"])
    assert ended.value.code == 2 and "are 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=f"{name}: error: device 'warp'"):
        tool.main(["--device", "warp"])


def test_the_shortest_run_after_the_warm_up_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = load_script("timing")
    now = 0.0
    turns: list[str] = []

    def work(name: str, costs: list[float]) -> str:
        nonlocal now
        now += costs[turns.count(name)]
        turns.append(name)
        return f"{name}{turns.count(name)}"

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    seconds, results = timing.take_turns(
        {"a": lambda: work("a", [1, 9, 7]), "b": lambda: work("b", [50, 3, 4])}, repeats=2, device="cpu"
    )
    assert seconds == {"a": 7, "b": 3} and results == {"a": "a3", "b": "b3"}
    assert turns == ["a", "b"] * 3


def test_every_stage_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("bench_gpu")
    arguments = ["--work", str(tmp_path), "--mllm", "tiny", "--sam", "tiny", "--scenes", "2", "--pixels", "4096"]
    arguments += ["--trainings", "bf16", "--steps", "2", "--queries", "4", "--ask-batch", "2", "--max-new-tokens", "4"]
    tool.main([*arguments, "--device", "cpu", "--peak-tflops", "2", "--json", str(tmp_path / "figures.json")])
    stages: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())["stages"]
    assert list(stages) == ["prepare", "train bf16", "predict bf16"]
    for stage in stages.values():
        assert stage["peak_bytes"] is None and stage["a_second"] == pytest.approx(stage["done"] / stage["seconds"])
    training, asking = stages["train bf16"], stages["predict bf16"]
    assert training["mfu"] == pytest.approx(training["tflops"] / 2)
    assert asking["done"] == 4 and asking["tokens_a_second"] <= 4 * 4 / asking["seconds"]
    answers = next((tmp_path / "bf16").glob("answers-*/predictions.jsonl")).read_text().splitlines()
    assert {json.loads(line)["status"] for line in answers} == {"ok"}
    printed = capsys.readouterr()
    assert "queries/s" in printed.out
    # A benchmark that is ended early has printed the stages that it finished.
    assert all(f"{name}: {{" in printed.err for name in stages)


# The numbers of parameters in the model cards.
@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3-vl-8b", 8.77), ("qwen2.5-vl-7b", 8.29), ("qwen2.5-vl-3b", 3.75)]
)
def test_models_of_real_size_have_the_sizes_of_real_ones(tmp_path: Path, name: str, billions: float) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    tool = load_script("real_size")
    tool.MLLMS[name][0](tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(tool.config_of(name, tmp_path), dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


class Parsed(Exception):
    """The options were parsed."""


@pytest.mark.parametrize(
    "words", [words for words in commands(PAGE.read_text("utf-8")) if words[0] == "python"], ids=" ".join
)
def test_each_command_of_the_page_on_performance_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: object) -> None:
        raise Parsed

    tool = load_script(Path(words[1]).stem)
    monkeypatch.setattr(tool, "run", run)
    with pytest.raises(Parsed):
        tool.main(words[2:])
