"""The experiment "fallback": figures that can be computed by hand, and a run on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.sample import Sample
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from tests.scripts import load_script, small_experiment
from tests.segmenters.fakes import MisledSegmenter
from tests.targets.examples import make_samples

ENTRY = DataEntry(dataset="refcoco", root=Path("nowhere"), split="val")


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return load_script("measure_fallback")


def scripted(samples: list[Sample], suffixes: dict[str, str]) -> Pipeline:
    """Return a pipeline that answers a sample by its true box and the text that `suffixes` has for its phrase."""
    method = method_from_settings({"name": "ppg", "positives": 1, "negatives": 1, "grid": 1000, "phrases": 1})
    boxes = {(str(each.image), each.phrase): each for each in samples}

    def answer(conversation: Conversation) -> str:
        phrase = conversation.turns[-1].text.split('"')[1]
        (sample,) = [each for (_, name), each in boxes.items() if name == phrase]
        box = method.grammar.write([SamPrompt(sample.objects[0].box)], sample.size_wh)  # type: ignore[attr-defined]
        return f"{box}{suffixes[phrase]}"

    return Pipeline(method, ScriptedEngine(answer), MisledSegmenter())


def test_each_fallback_is_measured_on_the_same_answers(experiment: ModuleType, tmp_path: Path) -> None:
    samples = [each for each in make_samples(tmp_path / "images", 1) if len(each.objects) == 1]
    # The left one's points mislead the segmenter, the right one's do not.
    pipeline = scripted(samples, {"left": " +(300,300) -(010,010)", "right": " +(600,600)"})
    model = experiment.Model()
    experiment.measure(pipeline, samples, ENTRY, tmp_path / "answers", model)

    assert list(model.rows) == list(experiment.ROWS)
    assert model.malformed == [0] and model.with_points == [1]
    width, height = samples[0].size_wh
    truths = [(each.objects[0].mask().sum(), each.objects[0].box.area) for each in samples]
    never, taken = model.rows[experiment.NEVER], model.rows["margin 0.05"]
    (left, _), (right, right_box) = truths
    assert never.giou[0] == pytest.approx((left / (width * height) + right / right_box) / 2, rel=0.05)
    assert taken.giou[0] == pytest.approx(sum(disc / box for disc, box in truths) / 2, rel=0.05)
    assert (never.replaced, taken.replaced) == ([0], [0.5])
    assert taken.ciou[0] > never.ciou[0]
    assert model.rows["outside 0.1"] == taken
    assert model.rows[experiment.BOX_ALONE].replaced == [1]
    # Points that change nothing are as good as the box, so the best is to leave out only the others.
    better = model.rows[experiment.BETTER]
    assert (better.giou, better.ciou, better.replaced) == (taken.giou, taken.ciou, [0.5])


def test_a_malformed_answer_counts_the_same_in_every_row(experiment: ModuleType, tmp_path: Path) -> None:
    samples = [each for each in make_samples(tmp_path / "images", 1) if len(each.objects) == 1]
    pipeline = scripted(samples, {"left": " and 7", "right": " +(600,600)"})
    model = experiment.Model()
    experiment.measure(pipeline, samples, ENTRY, tmp_path / "answers", model)
    assert model.malformed == [0.5]
    assert len({row.giou[0] for row in model.rows.values()}) == 1


def test_the_table_has_all_figures_in_percent(experiment: ModuleType) -> None:
    rows = {
        experiment.NEVER: experiment.Row([0.5, 0.7], [0.5, 0.5], [0.0, 0.0]),
        "margin 0": experiment.Row([0.25], [0.5], [0.125]),
    }
    models = {"a": experiment.Model([0.5], [0.0], [0.75], rows), "b": experiment.Model()}
    assert experiment.table(models)[2:] == [
        "| a | never | 60.00 (50.00 to 70.00) | 50.00 (50.00 to 50.00) | 0.00 (0.00 to 0.00) |",
        "| a | margin 0 | 25.00 | 50.00 | 12.50 |",
    ]
    (note,) = experiment.notes(models)
    assert note.startswith("a: 75.00 % of the answered objects") and "beat the box for 50.00 %" in note


def test_nothing_to_measure_is_an_error(experiment: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to measure"):
        load_script("run").main(["fallback", "--work", str(tmp_path / "work")])


def test_the_experiment_runs_on_tiny_models_and_resumes(
    experiment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("fallback", tmp_path, "--train", "1")
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["models"]) == list(experiment.VARIANTS)
    assert all(list(model["rows"]) == list(experiment.ROWS) for model in record["models"].values())
    (share,) = record["models"]["PPG"]["points_beat_box"]
    assert 0 <= share <= 1
    assert sum(line.startswith("| PPG") for line in printed.splitlines()) == len(experiment.ROWS)

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    monkeypatch.setattr("sam4mllm.targets.prepare.score_image_objects", refuse)
    load_script("run").main(arguments)
    assert capsys.readouterr().out == printed

    run = tmp_path / "work" / "PPG-1-0"
    load_script("run").main(
        ["fallback", "--work", str(tmp_path / "other"), "--run", str(run), "--json", str(tmp_path / "run.json")]
    )
    (model,) = json.loads((tmp_path / "run.json").read_text())["models"].values()
    assert model["rows"] == record["models"]["PPG"]["rows"] and model["points_beat_box"] == []
