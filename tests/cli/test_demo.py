"""The demo on tiny random models or scripted answers, and a few scenes: its files, rows, drawings and progress."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sam4mllm import demo, models
from sam4mllm.data.predictions import PredictionLine, read_predictions
from sam4mllm.demo import DATASETS, demo_recipe, run_demo, table
from sam4mllm.evaluation.comparison import draw_comparison
from sam4mllm.evaluation.score import Scores
from sam4mllm.methods.registry import method_from_settings, method_of_recipe
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.calibration import Calibration, Regression
from sam4mllm.runs.checkpoints import write_calibration
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.base import DecodedMasks, Embeddings
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.testing import save_tiny_mllm, save_tiny_sam
from tests.utils.fake_clock import FakeClock

ROWS = ("base", "tuned", "box alone", "oracle")
RECIPE = """
output: elsewhere
model: {base: shapes}
segmenter: {checkpoint: shapes}
data:
  train:
    - {dataset: refcoco, root: elsewhere, split: train, limit: 3}
    - {dataset: reasonseg, root: elsewhere, split: train, limit: 3}
  validation: {dataset: refcoco, root: elsewhere, split: val}
targets: {groups: 2, store: elsewhere}
lora: {r: 2}
training: {max_steps: 1, per_device_train_batch_size: 2, report_to: none, validate: {every_steps: 1, samples: 1}}
generation: {max_new_tokens: 3}
"""


def _scores(dataset: str, *, n: int = 50, malformed: int = 0, **figures: float) -> Scores:
    empty = dict.fromkeys(("ciou", "giou", "n_acc", "t_acc", "pr_70", "pr_80", "pr_90", "acc_50"))
    fields: dict[str, float | None] = {**empty, **figures}
    return Scores(dataset, "val", dataset, n=n, missing=0, malformed=malformed, **fields)


@pytest.mark.parametrize("folder", ["demo", "out/2024-01-01", "123", "null", "my runs: a #1", 'it\'s "here"'])
def test_all_paths_of_the_recipe_are_in_the_output_folder(folder: str) -> None:
    output = Path(folder)
    recipe = demo_recipe(output)
    assert Path(recipe.output) == output
    paths = [Path(entry.root) for entry in recipe.data.train]
    assert recipe.data.validation is not None
    paths += [Path(recipe.data.validation.root), Path(recipe.targets.store)]
    assert len(paths) == 5 and all(path.parent == output for path in paths)


def test_the_table_has_one_row_per_model_in_percent_and_a_dash_where_nothing_was_measured() -> None:
    base = {
        "refcoco": _scores("refcoco", ciou=0.5, acc_50=0.25),
        "grefcoco": _scores("grefcoco", n=30, malformed=4, ciou=0.125, giou=0.2, n_acc=1.0),
        "reasonseg": _scores("reasonseg", n=20, malformed=1, ciou=0.01, giou=0.02),
    }
    tuned = {**base, "refcoco": _scores("refcoco", ciou=0.876, acc_50=0.9), "grefcoco": _scores("grefcoco", ciou=0.6)}
    header, rule, *rows = table({"base": base, "tuned": tuned})
    titles = ["RES cIoU", "RES Acc@0.5", "gRES cIoU", "gRES gIoU", "gRES N-acc", "Reason cIoU", "Reason gIoU"]
    assert [title for title in titles if title in header] == titles and header.endswith("malformed")
    assert set(rule) == {"-", " "}
    assert rows[0].split() == ["base", "50.0", "25.0", "12.5", "20.0", "100.0", "1.0", "2.0", "5.0"]
    assert rows[1].split() == ["tuned", "87.6", "90.0", "60.0", "-", "-", "1.0", "2.0", "0.8"]


def test_the_shares_of_points_are_over_the_points_of_all_data_sets() -> None:
    scores = {name: _scores(name) for name in DATASETS}
    scores["refcoco"] = replace(
        scores["refcoco"], points_on=0.9, positive_points=200, points_off=0.5, negative_points=10
    )
    scores["reasonseg"] = replace(scores["reasonseg"], points_on=0.6, positive_points=100)
    header, _, tuned, base = table({"tuned": scores, "base": {name: _scores(name) for name in DATASETS}})
    assert header.split()[-5:] == ["points", "on", "points", "off", "malformed"]
    assert tuned.split()[-3:] == ["80.0", "50.0", "0.0"] and base.split()[-3:] == ["-", "-", "0.0"]


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on three scenes for training and four held-out ones."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(demo, "RECIPE", str(tmp_path / "recipe.yaml"))
    monkeypatch.setattr(demo, "TRAINING_SCENES", 3)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 4)


def test_the_demo_writes_its_files_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_recipe: None
) -> None:
    weights = {"mllm": tmp_path / "base", "segmenter": tmp_path / "sam.pth"}
    save_tiny_mllm("fast_vlm", weights["mllm"], seed=1)
    save_tiny_sam(weights["segmenter"])
    monkeypatch.setattr(models, "path", weights.__getitem__)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 2)
    output = tmp_path / "out"

    scores = run_demo(output)

    printed = capsys.readouterr().out
    assert "[1/8]" in printed and "[8/8]" in printed and all(f"\n{row} " in printed for row in ROWS)
    assert list(scores) == list(ROWS) and all(set(scores[row]) == set(DATASETS) for row in ROWS)
    written = json.loads((output / "scores.json").read_text())
    assert all(written[row]["refcoco"] == scores[row]["refcoco"].to_json() for row in ROWS)
    assert list(written["seconds"]) == ["data", "targets", "base", "train", "tuned", "box alone", "oracle", "drawings"]
    assert (output / "adapter_model.safetensors").is_file()
    drawings = {path.name for path in (output / "drawings").glob("*.png")}
    assert "sheet.png" in drawings and all({f"{name}-0.png", f"{name}-1.png"} <= drawings for name in DATASETS)
    assert Image.open(output / "drawings" / "sheet.png").width > 2 * 4 * 216

    # The full demo resumes from there and adds one training.
    full = run_demo(output, full=True)
    printed = capsys.readouterr().out
    assert "[11/11]" in printed
    assert list(full) == ["base", "tuned", "box alone", "pqpp", "pqpp, box alone", "oracle"]
    assert {row: full[row] for row in ROWS} == scores
    written = json.loads((output / "scores.json").read_text())
    assert written["pqpp"]["refcoco"] == full["pqpp"]["refcoco"].to_json()
    assert {"train_pqpp", "pqpp", "pqpp, box alone"} <= written["seconds"].keys()
    assert json.loads((output / "pqpp" / "method.json").read_text())["name"] == "pqpp"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "recipe.yaml", "sam.pth"]

    adapter = (output / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_demo(output) == scores
    assert (output / "adapter_model.safetensors").stat().st_mtime_ns == adapter


class SlowSegmenter(BoxSegmenter):
    """Cuts the negative points out of the box. Each call takes 31 seconds by the clock, if there is one."""

    def __init__(self, clock: FakeClock | None) -> None:
        super().__init__(points_cut=True)
        self.embedded = 0
        self._clock = clock

    def embed(self, images: Any) -> Embeddings:
        self.embedded += len(images)
        return super().embed(images)

    def decode_points(self, *arguments: Any) -> DecodedMasks:
        if self._clock is not None:
            self._clock.move(31)
        return super().decode_points(*arguments)


BASE_ANSWER = "[100,100,899,899]"
TUNED_ANSWER = "[100,100,899,899] +(300,300)(500,500) -(700,700)"


class ScriptedDemo:
    """Replaces the models of the demo: a segmenter whose mask is the box, and one answer to all phrases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: FakeClock | None = None) -> None:
        self.segmenter = SlowSegmenter(clock)
        self.engines: dict[str, ScriptedEngine] = {}
        self._clock = clock
        monkeypatch.setattr(demo, "load_segmenter", lambda *_: self.segmenter)
        monkeypatch.setattr(demo.Pipeline, "from_pretrained", self._load)
        monkeypatch.setattr(demo, "train", self._train)

    def _load(self, model: str | Path) -> Pipeline:
        is_base = str(model) == "shapes"
        points = {"positives": 0, "negatives": 0} if is_base else {"positives": 2, "negatives": 1}
        engine = ScriptedEngine(lambda _: BASE_ANSWER if is_base else TUNED_ANSWER)
        self.engines["base" if is_base else "tuned"] = engine
        return Pipeline(
            method_from_settings({"name": "ppg", "grid": 1000, "phrases": 1, **points}), engine, BoxSegmenter()
        )

    def _train(self, recipe: Recipe, callbacks: Any) -> RunFolder:
        for step in range(2):
            callbacks[0].on_step_end(None, SimpleNamespace(global_step=step), None)
            if self._clock is not None:
                self._clock.move(31)
        return RunFolder.create(recipe, method_of_recipe(recipe))


def _lines(folder: Path) -> dict[str, PredictionLine]:
    return {line.id: line for line in read_predictions(folder / "predictions.jsonl")}


def test_the_box_alone_has_the_boxes_of_the_tuned_answers_and_no_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: None
) -> None:
    scripted = ScriptedDemo(monkeypatch)
    scores = run_demo(tmp_path / "out")
    phrases = sum(scores["tuned"][name].n for name in DATASETS)
    assert len(scripted.engines["tuned"].asked) == len(scripted.engines["base"].asked) == phrases
    for name in DATASETS:
        folder = tmp_path / "out/predictions/tuned" / name
        tuned, alone = _lines(folder), _lines(folder / "baseline-box")
        assert tuned.keys() == alone.keys() and len(tuned) == scores["box alone"][name].n
        for key, line in tuned.items():
            (ours,), (other,) = line.objects, alone[key].objects
            assert ours.prompt is not None and other.prompt is not None
            assert (len(ours.prompt.points), len(other.prompt.points)) == (3, 0)
            assert ours.prompt.box == other.prompt.box and ours.segmentation != other.segmentation
    # The base model gives the same box, so SAM gives the same mask.
    assert asdict(scores["base"]["refcoco"]) == asdict(scores["box alone"]["refcoco"])
    assert scores["tuned"]["refcoco"].ciou != scores["box alone"]["refcoco"].ciou


def test_cases_for_which_points_decide_are_drawn_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: None
) -> None:
    ScriptedDemo(monkeypatch)
    drawn: list[tuple[str, list[str], str]] = []

    def recorded(sample: Any, answers: Any, caption: str) -> Image.Image:
        drawn.append((sample.id, list(answers), caption))
        return draw_comparison(sample, answers, caption)

    monkeypatch.setattr(demo, "draw_comparison", recorded)
    run_demo(tmp_path / "out")
    files = {path.stem for path in (tmp_path / "out/drawings").glob("*.png")}
    others = {f"{name}-{number}" for name in DATASETS for number in range(2)}
    decided = {f"points-{number}" for number in range(len(drawn) - len(others))}
    assert decided and files == decided | others | {"sheet"}
    assert len({sample_id for sample_id, _, _ in drawn}) == len(drawn)
    assert all(titles == ["base", "tuned, box alone", "tuned with points"] for _, titles, _ in drawn)
    assert all(caption.endswith(f"\n{TUNED_ANSWER}") for _, _, caption in drawn)
    before = list(drawn)
    drawn.clear()
    run_demo(tmp_path / "out")
    assert drawn == before


def test_each_held_out_image_is_embedded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: None
) -> None:
    scripted = ScriptedDemo(monkeypatch)
    trained_on: list[int] = []
    train = demo.train
    monkeypatch.setattr(
        demo, "train", lambda *a, **k: (trained_on.append(scripted.segmenter.embedded), train(*a, **k))[1]
    )
    run_demo(tmp_path / "out")
    # The images of the training scenes, once for each file at most, and the held-out ones: also those of ReasonSeg,
    # whose files have the pixels of the others.
    assert scripted.segmenter.embedded == trained_on[0] <= 2 * 3 + 4


@pytest.mark.parametrize("pairs", [12, 50])
def test_a_calibration_of_few_answers_is_part_of_the_summary_and_no_warning(
    pairs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_recipe: None
) -> None:
    scripted = ScriptedDemo(monkeypatch)
    train = scripted._train

    def train_and_calibrate(recipe: Recipe, callbacks: Any) -> RunFolder:
        run = train(recipe, callbacks)
        write_calibration(run.path, Calibration(Regression(0.0, {}, pairs, 7), None, "refcoco val"))
        return run

    monkeypatch.setattr(demo, "train", train_and_calibrate)
    run_demo(tmp_path / "out")
    printed = capsys.readouterr()
    note = "\nScores of predictions: the calibration was fitted to 12 objects of refcoco val; with fewer than 50 its"
    assert (note in printed.out) == (pairs == 12) and "calibration" not in printed.err


def test_without_a_terminal_every_stage_prints_a_line_every_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_recipe: None
) -> None:
    clock = FakeClock.install(monkeypatch)
    ScriptedDemo(monkeypatch, clock)

    def slow_write(root: Path, *, advance: Any, **options: Any) -> None:
        write_dataset(root, advance=lambda count: (clock.move(31), advance(count)), **options)

    def slow_drawing(*arguments: Any) -> Image.Image:
        clock.move(31)
        return draw_comparison(*arguments)

    monkeypatch.setattr(demo, "write_dataset", slow_write)
    monkeypatch.setattr(demo, "draw_comparison", slow_drawing)
    run_demo(tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    titles = list(dict.fromkeys(line.partition(":")[0] for line in lines))
    assert titles == ["scenes", "targets", "base", "train", "tuned", "box alone", "oracle", "drawings"]
    # Each time that the clock moves past 30 seconds gives a line: 11 scenes, 2 steps.
    assert sum(line.startswith("scenes:") for line in lines) == 11
    assert next(line for line in lines if line.startswith("train:")).startswith("train: 1 of 1 steps")
