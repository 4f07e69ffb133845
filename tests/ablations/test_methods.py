"""The experiment "methods": rows that can be computed by hand, and runs on tiny random models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.errors import PredictionsError
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.baselines import predict_from_boxes
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.testing import save_tiny_mllm
from tests.scripts import load_script, small_experiment
from tests.segmenters.fakes import MisledSegmenter
from tests.simulated import Killed
from tests.targets.examples import make_samples

# "left" misleads the segmenter by its negative point.
SUFFIXES = {"left": " +(250,375) -(010,010)", "right": " +(600,600)"}
DATASETS = ("refcoco", "grefcoco", "reasonseg")


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return load_script("measure_methods")


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    return load_script("methods_rows")


def scripted(samples: list[Sample]) -> Pipeline:
    """Return a pipeline that answers the true box and the points of `SUFFIXES`."""
    method = method_from_settings({"name": "ppg", "positives": 1, "negatives": 1, "grid": 1000, "phrases": 1})
    by_phrase = {sample.phrase: sample for sample in samples}

    def answer(conversation: Conversation) -> str:
        phrase = conversation.turns[-1].text.split('"')[1]
        sample = by_phrase[phrase]
        box = method.grammar.write([SamPrompt(sample.objects[0].box)], sample.size_wh)  # type: ignore[attr-defined]
        return f"{box}{SUFFIXES[phrase]}"

    return Pipeline(method, ScriptedEngine(answer), MisledSegmenter())


def answered(folder: Path) -> tuple[dict[str, list[Sample]], dict[str, dict[str, list[object]]]]:
    """Return the samples of each data set, and their predictions with the points of the answers and without."""
    discs = [each for each in make_samples(folder / "images", 1) if len(each.objects) == 1]
    samples = {name: discs for name in DATASETS}
    pipeline = scripted(discs)
    summary = predict(pipeline, queries_of(discs), folder / "points")
    lines = list(read_predictions(summary.predictions))
    summary = predict_from_boxes(pipeline, queries_of(discs), lines, folder / "boxes")
    boxes = list(read_predictions(summary.predictions))
    return samples, {"points": {name: lines for name in DATASETS}, "boxes": {name: boxes for name in DATASETS}}


def test_a_row_has_the_figures_of_each_data_set(rows: ModuleType, tmp_path: Path) -> None:
    samples, lines = answered(tmp_path)
    row = rows.measure(lines["points"], samples, 0.25)
    left, right = (sample.objects[0] for sample in samples["refcoco"])
    width, height = samples["refcoco"][0].size_wh
    mean_iou = (left.mask().sum() / (width * height) + right.mask().sum() / right.box.area) / 2
    assert row.gres_giou == row.reason_giou == pytest.approx(mean_iou, rel=0.05)
    assert row.res_ciou == row.reason_ciou and row.res_acc_50 == 1
    assert (row.malformed, row.gres_n_acc, row.seconds_a_query) == (0, None, 0.25)
    # Three points on two objects; the positive ones are on their discs, and the negative one is off its disc.
    assert (row.points_an_object, row.points_on, row.points_off) == (1.5, 1, 1)
    shares = [each.mask().sum() / each.box.area for each in (left, right)]
    assert row.points_on_chance == pytest.approx(sum(shares) / 2, abs=0.02)

    alone = rows.measure(lines["boxes"], samples)
    assert alone.res_ciou > row.res_ciou and alone.res_acc_50 == 1
    assert (alone.points_an_object, alone.points_on, alone.points_on_chance) == (0, None, None)


def test_points_are_pooled_over_the_data_sets(rows: ModuleType, tmp_path: Path) -> None:
    samples, lines = answered(tmp_path)
    # One data set without points, and one whose object is annotated elsewhere, so that its points do not count.
    lines["points"]["grefcoco"] = lines["boxes"]["grefcoco"]
    left, right = samples["reasonseg"]
    samples["reasonseg"] = [replace(left, objects=right.objects), replace(right, objects=left.objects)]
    row = rows.measure(lines["points"], samples)
    assert (row.points_on, row.points_off) == (1, 1) and row.points_an_object == 1


def test_a_row_without_points_has_the_answers_of_its_row(
    experiment: ModuleType, rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, lines = answered(tmp_path)
    pipeline = scripted(samples["refcoco"])
    recipes = {name: load_recipe("shapes_ppg", settings) for name, settings in experiment.VARIANTS.items()}
    measured = experiment.SeedExperiment(0, recipes, samples, "val", tmp_path / "seed-0", "cpu")
    monkeypatch.setattr(measured, "_trained", lambda name: pipeline)
    monkeypatch.setitem(vars(measured), "base", pipeline)
    # The row with points is measured first.
    without, with_points = measured.row("PPG without its points"), measured.row("PPG")
    assert without == rows.measure(lines["boxes"], samples)
    assert with_points == rows.measure(lines["points"], samples, with_points.seconds_a_query)
    assert with_points.seconds_a_query is not None
    (folder,) = (tmp_path / "seed-0").iterdir()
    assert {file.name for file in folder.glob("*.json")} == {"val.json", "val-without-points.json"}


def test_queries_with_errors_are_refused(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _ = answered(tmp_path)
    recipes = {name: load_recipe("shapes_ppg", settings) for name, settings in experiment.VARIANTS.items()}
    measured = experiment.SeedExperiment(0, recipes, samples, "val", tmp_path / "seed-0", "cpu")
    # The scripted engine fails where it has no answer.
    pipeline = Pipeline(scripted(samples["refcoco"]).method, ScriptedEngine({}), MisledSegmenter())
    monkeypatch.setitem(vars(measured), "base", pipeline)
    with pytest.raises(PredictionsError, match="2 queries have the status"):
        measured.row("base")
    assert not list((tmp_path / "seed-0").glob("*/val.json"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("PPG", ("PPG",)),
        ("PPG,box alone", ("box alone", "PPG")),
        ("PQPP, single,PPG, random group", ("PPG, random group", "PQPP, single")),
    ],
)
def test_names_may_hold_a_comma(experiment: ModuleType, text: str, names: tuple[str, ...]) -> None:
    assert experiment.parse_names(text) == names


@pytest.mark.parametrize("text", ["PPG, box alone", "ppg", ""])
def test_an_unknown_name_is_refused_before_anything_is_computed(text: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown row"):
        load_script("run").main(["methods", "--work", str(tmp_path / "work"), "--only", text])
    assert not (tmp_path / "work").exists()


ONLY = "base,PPG,PPG without its points,PQPP,PQPP without its points,oracle"


def test_the_experiment_runs_on_tiny_models_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("methods", tmp_path, "--steps", "1", "--seeds", "2", "--split", "val", "--only", ONLY)
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    by_name = record["rows"]
    assert len(by_name) == 6 and all(list(by_seed) == ["0", "1"] for by_seed in by_name.values())
    assert record["split"] == "val" and all(set(each) == set(DATASETS) for each in record["queries"].values())
    # Random weights answer nothing that can be parsed.
    assert all(by_name[name]["0"]["malformed"] == 1 for name in ("base", "PPG", "PPG without its points", "PQPP"))
    assert all(row["malformed"] == 0 and row["points_an_object"] > 0 for row in by_name["oracle"].values())
    assert all(row["points_on"] == 1 and row["points_off"] == 1 for row in by_name["oracle"].values())
    assert by_name["PPG"]["0"]["seconds_a_query"] and not by_name["oracle"]["0"]["seconds_a_query"]
    assert set(record["differences"]) >= {"PPG - base", "PPG - PPG without its points"}
    # Each seed has scenes of its own.
    images = [next((tmp_path / "work" / f"seed-{seed}").rglob("*.jpg")).read_bytes() for seed in (0, 1)]
    assert images[0] != images[1]

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    for function in ("training.trainer.fit", "targets.prepare.score_image_objects"):
        monkeypatch.setattr(f"sam4mllm.{function}", refuse)
    monkeypatch.setattr("sam4mllm.pipeline.pipeline.Pipeline.segment", refuse)
    load_script("run").main(arguments)
    assert capsys.readouterr().out == printed


def test_another_split_uses_the_same_training_and_another_base_model_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--steps", "1", "--seeds", "1", "--only", "PPG")
    arguments = small_experiment("methods", tmp_path, *more, "--split", "val")
    load_script("run").main(arguments)

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    load_script("run").main([*arguments, "--split", "test"])
    assert json.loads((tmp_path / "table.json").read_text())["split"] == "test"
    save_tiny_mllm("fast_vlm", tmp_path / "base", seed=2)
    with pytest.raises(AssertionError, match="trained again"):
        load_script("run").main(arguments)


def test_a_killed_experiment_resumes_in_the_middle_of_a_row(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("methods", tmp_path, "--steps", "1", "--seeds", "1", "--only", "PPG")

    def killed(pipeline: Pipeline, queries: object, output: Path, **options: object) -> object:
        if output.name == "grefcoco":
            raise Killed
        return predict(pipeline, queries, output, **options)  # type: ignore[arg-type]

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "predict", killed)
        with pytest.raises(Killed):
            load_script("run").main(arguments)
    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    load_script("run").main(arguments)
    row = json.loads((tmp_path / "table.json").read_text())["rows"]["PPG"]["0"]
    # The time of a part of the answers is not that of all.
    assert row["malformed"] == 1 and row["seconds_a_query"] is None
