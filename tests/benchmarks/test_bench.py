"""The benchmarks on tiny random models: each variant gives its baseline's results, and the figures are consistent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.errors import DataError, Sam4mllmError
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import save_tiny_mllm, save_tiny_sam, tiny_sam
from tests.scripts import load_script
from tests.test_readme import commands

PAGE = Path(__file__).parents[2] / "docs/performance.md"


def run_small(name: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a benchmark on the CPU with one turn; return the rows of its JSON file, checked for consistency."""
    file = folder / "new" / f"{name}.json"
    load_script(name).main([*arguments, "--device", "cpu", "--repeats", "1", "--json", str(file)])
    record = json.loads(file.read_text())
    assert record["benchmark"] == name and record["machine"]["device"] == "cpu"
    rows: list[dict[str, Any]] = record["rows"]
    baselines: dict[str, Any] = {}
    for row in rows:
        baseline = baselines.setdefault(row["work"], row)
        assert row["ms_an_item"] == pytest.approx(1000 * row["seconds"][0] / row["items"])
        assert row["ratio"]["median"] == pytest.approx(baseline["seconds"][0] / row["seconds"][0])
    return rows


def test_every_variant_scores_groups_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("bench_targets")
    arguments = ["--checkpoint", str(save_tiny_sam(tmp_path / "sam.pth")), "--objects", "4", "--groups", "5"]
    rows = run_small("bench_targets", tmp_path, *arguments, "--batch-sizes", "2", "64")
    variants = [tool.ONE, tool.ALL, "sam4mllm, 2 prompts at once", "sam4mllm, 64 prompts at once"]
    for work in ("decode", "prepare"):
        assert [(row["variant"], row["same"]) for row in rows if row["work"] == work] == [(v, 1.0) for v in variants]
    assert [row["items"] for row in rows if row["work"] == "encode"] == [2, 2]
    printed = capsys.readouterr().out
    assert "objects: 4, images: 2" in printed and all(f"  {name}  " in printed for name in variants)


def test_the_requested_number_of_objects_is_timed() -> None:
    tool = load_script("bench_targets")
    for count in (1, 5, 8):
        scenes = tool.scenes_of(count, 4, 0, (80, 60))
        assert sum(len(candidates) for _, candidates in scenes) == count
        assert all(image.shape == (60, 80, 3) for image, _ in scenes)


def test_predictions_are_those_of_the_libraries_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    arguments = ["--base", str(base), "--checkpoint", str(save_tiny_sam(tmp_path / "sam.pth")), "--images", "2"]
    rows = run_small("bench_predict", tmp_path, *arguments, "--phrases", "2", "--max-new-tokens", "4")
    works = [
        "generate, 2 phrases an image",
        "generate, one phrase an image",
        "predict, 2 phrases an image",
        "predict beside repeated set_image, 2 phrases an image",
    ]
    assert list(dict.fromkeys(row["work"] for row in rows)) == works
    assert all(row["same"] == 1.0 for row in rows)
    assert [row["items"] for row in rows] == [4, 4, 8, 8, 4, 4, 4, 4]
    assert "parameters: 0." in capsys.readouterr().out


def test_the_masks_of_a_fixed_answer_are_those_of_the_predictor(tmp_path: Path) -> None:
    tool = load_script("bench_predict")
    mllm = load_mllm(str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)))
    segmenter = SegmentAnything(tiny_sam())
    models = tool.Models(mllm, segmenter, Ppg(2, 1, 1000, 1), tool.ANSWER)
    queries = [(image, text) for image, texts in tool.images_and_phrases(2, 2, 0, (80, 60)) for text in texts]
    baseline = tool.plain_predict(models, queries, 3, True)
    assert [len(masks) for _, masks in baseline] == [1] * 4
    assert tool.same_predictions(baseline, tool.plain_predict(models, queries, 3, False)) == 1.0
    assert tool.same_predictions(baseline, tool.our_predict(models, queries, 3, 8)) == 1.0
    inverted = [(text, [~mask for mask in masks]) for text, masks in baseline]
    assert tool.same_predictions(baseline, inverted) == 0.0


@pytest.mark.parametrize("name", ["bench_targets", "bench_predict"])
def test_bad_options_end_with_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script(name)
    with pytest.raises(SystemExit) as ended:
        tool.main(["--repeats", "0"])
    assert ended.value.code == 2 and "must be a number of 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=f"{name}: error: device 'warp'"):
        tool.main(["--device", "warp"])


def test_the_turns_after_the_warm_up_are_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = load_script("timing")
    now = 0.0
    turns: list[str] = []

    def work(name: str, costs: list[float]) -> str:
        nonlocal now
        now += costs[turns.count(name)]
        turns.append(name)
        return name

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    variants = {"a": lambda: work("a", [1, 9, 7, 8]), "b": lambda: work("b", [50, 3, 4, 2])}
    a, b = timing.compare("w", variants, items=2, item="x", repeats=3, device="cpu", same=lambda _, result: 1.0)
    assert turns == ["a", "b"] * 4
    assert a.seconds == (9, 7, 8) and a.ratio == (1, 1, 1)
    assert b.seconds == (3, 4, 2) and b.ratio == (3, 7 / 4, 4) and b.ms_an_item == 1500 and b.same == 1.0


def test_variants_with_other_results_are_not_timed() -> None:
    timing = load_script("timing")

    def compare(least: float) -> Any:
        variants = {"a": lambda: [1, 2], "b": lambda: [1, 3]}
        share = lambda one, other: sum(map(int.__eq__, one, other)) / 2  # noqa: E731
        return timing.compare("w", variants, items=2, item="x", repeats=1, device="cpu", same=share, least_same=least)

    assert [row.same for row in compare(0.5)] == [1.0, 0.5]
    with pytest.raises(timing.DifferentResultsError, match=r"50\.0 % of the results of 'b' are those of 'a'"):
        compare(1.0)


def test_sizes_depend_on_small_and_real_unless_they_are_given() -> None:
    script = load_script("script")

    def size(*arguments: str) -> Any:
        parser = script.parser_of("", real=True)
        script.add_size(parser, "--objects", "objects", default=10, small=5, real=2)
        found = []

        def run(options: Any) -> Any:
            found.append(options.objects)
            raise DataError("enough")

        with pytest.raises(SystemExit):
            script.report(parser, run, [*arguments, "--device", "cpu"])
        return found[0]

    assert [size(), size("--small"), size("--real"), size("--small", "--objects", "3")] == [10, 5, 2, 3]


def test_tables_have_the_same_cells_as_text_and_in_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    script, timing = load_script("script"), load_script("timing")
    rows = timing.rows_of("work", {"a": [2.0], "b": [1.0]}, 4, "object", notes={"b": {"padding": 0.125}})
    record = {
        "command": "python benchmarks/x.py",
        "machine": {"processor": "P", "threads": 2, "torch": "2"},
        "settings": {"batch_sizes": [1, 8]},
        "rows": [script.row_record(row) for row in rows],
    }
    heading, _, *lines = script.markdown(record)
    assert heading == "`python benchmarks/x.py` (P, 2 thread(s), torch 2; batch sizes: 1 8)"
    assert lines[1:] == [
        "|---|---|---|---|---|",
        "| work | a | 500 ms per object | x 1.00 (1.00 to 1.00) |  |",
        "| work | b | 250 ms per object | x 2.00 (2.00 to 2.00) | 0.125 |",
    ]
    assert all(
        cell in line
        for line, cells in zip(script.table(record)[4:], lines[2:], strict=True)
        for cell in cells.strip("| ").split(" | ")
    )


def test_points_have_the_probabilities_of_single_passes(tmp_path: Path) -> None:
    base = save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    rows = run_small("bench_pqpp", tmp_path, "--base", str(base), "--images", "1", "--max-new-tokens", "2")
    assert [(row["work"], row["items"], row["same"]) for row in rows[::2]] == [
        ("round two", 25, 1.0),
        ("round one and two", 25, 1.0),
    ]


def test_training_has_the_loss_and_gradients_of_separate_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_script("bench_train"), "PADDED_IMAGES", 2)
    base = save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    arguments = ["--base", str(base), "--images", "2", "--batch-images", "1", "--phrases", "2"]
    plain, ours = run_small("bench_train", tmp_path, *arguments)
    assert plain["items"] == ours["items"] == 4
    assert int(ours["notes"]["tokens"]) < int(plain["notes"]["tokens"])


def test_other_gradients_are_not_timed(tmp_path: Path) -> None:
    tool = load_script("bench_train")
    base = str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1))
    settings = {"r": 2, "init_lora_weights": False}
    plain, ours, other = (attach_lora(load_mllm(base), settings, seed=seed) for seed in (0, 0, 1))
    conversations = tool.conversations_of(1, 2, seed=0)
    for mllm in (ours, other):
        tool.isolate_branches(mllm.model)
    assert tool.check_equal(plain, ours, conversations) < 1e-4
    with pytest.raises(Sam4mllmError, match="loss or gradients differ"):
        tool.check_equal(plain, other, conversations)


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
    ("name", "billions"),
    [("qwen3-vl-8b", 8.77), ("qwen2.5-vl-7b", 8.29), ("qwen2.5-vl-3b", 3.75), ("qwen2.5-vl-cpu", 0.281)],
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
