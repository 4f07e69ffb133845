"""Calibration of a trained run: resumed with equal bytes, and measured by cross-fitting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.entry import DataEntry
from sam4mllm.errors import DataError, ModelError
from sam4mllm.evaluation.calibrate import calibrate, calibrate_pipeline
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.utils.hub import ADAPTER_CONFIG
from tests.data.tiny_datasets import write_image


def reply(text: str, logprob: float) -> Reply:
    return Reply(text, True, tuple((place + 1, logprob) for place in range(len(text))))


# Of 20 x 10 pixels; the object is the left half.
ANSWERS = {
    "clear": reply("[0,0,4,9]", -0.05),
    "vague": reply("[5,0,9,9]", -2.0),
    "dragon": reply("No object found.", -0.1),
    "riddle": reply("who knows", -1.0),
}


def write_data(folder: Path, phrases: list[str]) -> DataEntry:
    lines = []
    for index, phrase in enumerate(phrases):
        write_image(folder / f"{index}.png")
        meant = [] if phrase == "a dragon" else [[[0, 0, 10, 0, 10, 10, 0, 10]]]
        lines.append({"image": f"{index}.png", "phrase": phrase, "masks": meant})
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataEntry(dataset="jsonl", path=folder / "own.jsonl")


def make_pipeline(answers: dict[str, Reply] = ANSWERS) -> Pipeline:
    return Pipeline(Ppg(0, 0, 10, 1), ScriptedEngine(answers), BoxSegmenter(), engine_identity={"name": "test"})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path}/run\nmodel: {{base: shapes}}\nsegmenter: {{checkpoint: shapes}}\n"
        f"data: {{train: [{{dataset: jsonl, path: {tmp_path}/train.jsonl}}]}}\n"
    )
    made = RunFolder.create(load_recipe(recipe))
    (made.path / ADAPTER_CONFIG).write_text("{}")
    return made


PHRASES = ["clear", "vague", "a dragon", "clear", "riddle", "vague", "clear", "a dragon", "clear"] * 4


def test_a_split_is_answered_and_fitted_and_the_fit_is_measured_by_cross_fitting(
    run: RunFolder, tmp_path: Path
) -> None:
    found = calibrate_pipeline(make_pipeline(), run, write_data(tmp_path, PHRASES), tmp_path / "out")
    assert run.calibration == found.calibration
    assert (found.objects.n, found.objects.correct) == (24, 16) and (found.no_object.n, found.no_object.correct) == (
        8,
        8,
    )
    # The segmenter is sure of all, and a third is wrong.
    assert found.objects.ece_before == pytest.approx(1 / 3)
    assert found.objects.ece_cross_fitted is not None and found.objects.ece_cross_fitted < 0.2
    calibrated = Pipeline(Ppg(0, 0, 10, 1), ScriptedEngine(ANSWERS), BoxSegmenter(), calibration=run.calibration)
    clear, vague = calibrated([(tmp_path / "0.png", "clear"), (tmp_path / "0.png", "vague")])
    assert clear.score is not None and vague.score is not None and clear.score > 0.6 > 0.4 > vague.score
    assert "24 objects, 16 correct: ECE 33.3 % before" in found.report() and "cross-fitted" in found.report()
    assert 'note: the calibration was fitted to 24 objects and 8 "no object" answers of jsonl' in found.report()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_repeated_calibration_asks_nothing_and_gives_the_same_result_whatever_calibration_exists(
    run: RunFolder, tmp_path: Path
) -> None:
    entry = write_data(tmp_path, PHRASES)
    first = calibrate_pipeline(make_pipeline(), run, entry, tmp_path / "out")
    written = (run.path / "calibration.json").read_bytes()
    again = Pipeline(
        Ppg(0, 0, 10, 1),
        ScriptedEngine([]),
        BoxSegmenter(),
        engine_identity={"name": "test"},
        calibration=run.calibration,
    )
    assert (
        calibrate_pipeline(again, run, entry, tmp_path / "out") == first
        and (run.path / "calibration.json").read_bytes() == written
    )


def test_a_training_split_and_answers_that_cannot_be_parsed_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was trained on it"):
        calibrate(run, dataset="jsonl", path=tmp_path / "train.jsonl")
    with pytest.raises(ModelError, match="none of 1 answers could be parsed"):
        calibrate_pipeline(make_pipeline(), run, write_data(tmp_path, ["riddle"]), tmp_path / "out")
    assert run.calibration is None


def test_a_training_split_is_recognized_in_another_folder_and_with_its_default_split_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path}/run\nmodel: {{base: shapes}}\nsegmenter: {{checkpoint: shapes}}\n"
        "data: {train: [{dataset: refcoco, root: data, split: train}]}\n"
    )
    run = RunFolder.create(load_recipe(recipe))
    with pytest.raises(DataError, match="was trained on it"):
        calibrate(run, dataset="refcoco", root=tmp_path / "data", split="train", split_by="unc")


def test_one_image_cannot_be_cross_fitted(run: RunFolder, tmp_path: Path) -> None:
    found = calibrate_pipeline(make_pipeline(), run, write_data(tmp_path, ["clear"]), tmp_path / "out")
    assert found.objects.ece_cross_fitted is None and "- cross-fitted" in found.report()


def test_the_subcommand_writes_the_calibration_and_prints_its_figures(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scripted(run: str, adapter: str | None, **settings: object) -> Pipeline:
        assert adapter is None and settings.get("segmenter") is None
        return make_pipeline()

    monkeypatch.setattr(Pipeline, "from_pretrained", scripted)
    write_data(tmp_path, PHRASES)
    data = ["--dataset", "jsonl", "--path", str(tmp_path / "own.jsonl")]
    assert main(["calibrate", str(run.path), *data, "--json", str(tmp_path / "c.json")]) == 0
    printed, logged = capsys.readouterr()
    assert printed.count("cross-fitted") == 2 and "36 predictions" in logged
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["objects"]["n"] == 24 and record["calibration"] == json.loads(
        (run.path / "calibration.json").read_text()
    )
    assert (run.path / "calibration/jsonl-own/predictions.jsonl").is_file()
    assert run.calibration is not None and run.calibration.fitted_on == f"jsonl {tmp_path / 'own.jsonl'}"
    assert main(["calibrate", str(tmp_path / "none"), *data]) == 2
    assert "no such run folder" in capsys.readouterr().err
