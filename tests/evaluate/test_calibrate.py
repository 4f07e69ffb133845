"""Calibrating a run that is trained: resumed to the same bytes, and honest about how well the fit does."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from sam4mllm.cli import answer_commands
from sam4mllm.cli.main import main
from sam4mllm.data.entry import DataEntry
from sam4mllm.errors import DataError, ModelError
from sam4mllm.evaluate.calibrate import calibrate
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.run_folder import ADAPTER_CONFIG, RunFolder
from sam4mllm.segmenters.fake import BoxSegmenter
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


def test_a_split_is_answered_and_fitted_and_told_by_cross_fitting(run: RunFolder, tmp_path: Path) -> None:
    found = calibrate(make_pipeline(), run, write_data(tmp_path, PHRASES))
    assert found is not None and run.calibration == found.calibration
    assert (found.objects.n, found.objects.right) == (24, 16) and (found.no_object.n, found.no_object.right) == (8, 8)
    # The segmenter is sure of all, and a third is wrong.
    assert found.objects.before == pytest.approx(1 / 3)
    assert found.objects.after is not None and found.objects.after < 0.2
    calibrated = Pipeline(Ppg(0, 0, 10, 1), ScriptedEngine(ANSWERS), BoxSegmenter(), calibration=run.calibration)
    clear, vague = calibrated([(tmp_path / "0.png", "clear"), (tmp_path / "0.png", "vague")])
    assert clear.score is not None and vague.score is not None and clear.score > 0.6 > 0.4 > vague.score
    assert "24 objects, 16 right: ECE 33.3 % before" in found.text() and "cross-fitted" in found.text()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_second_time_nothing_is_asked_and_the_same_comes_out_whatever_calibration_was_there(
    run: RunFolder, tmp_path: Path
) -> None:
    entry = write_data(tmp_path, PHRASES)
    first = calibrate(make_pipeline(), run, entry)
    written = (run.path / "calibration.json").read_bytes()
    again = Pipeline(
        Ppg(0, 0, 10, 1),
        ScriptedEngine([]),
        BoxSegmenter(),
        engine_identity={"name": "test"},
        calibration=run.calibration,
    )
    assert calibrate(again, run, entry) == first and (run.path / "calibration.json").read_bytes() == written


def test_what_was_trained_on_and_what_cannot_be_read_fits_nothing(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was trained on it"):
        calibrate(make_pipeline(), run, run.recipe.data.train[0])
    with pytest.raises(ModelError, match="none of 1 answers could be read"):
        calibrate(make_pipeline(), run, write_data(tmp_path, ["riddle"]))
    assert run.calibration is None


def test_a_split_that_was_trained_on_is_known_in_another_folder_and_by_its_usual_splitter(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path}/run\nmodel: {{base: shapes}}\nsegmenter: {{checkpoint: shapes}}\n"
        "data: {train: [{dataset: refcoco, root: data, split: train}]}\n"
    )
    entry = DataEntry(dataset="refcoco", root=tmp_path / "data", split="train", split_by="unc")
    with pytest.raises(DataError, match="was trained on it"):
        calibrate(make_pipeline(), RunFolder.create(load_recipe(recipe)), entry)


def test_one_image_cannot_be_cross_fitted(run: RunFolder, tmp_path: Path) -> None:
    found = calibrate(make_pipeline(), run, write_data(tmp_path, ["clear"]))
    assert found is not None and found.objects.after is None and "- cross-fitted" in found.text()


def test_the_verb(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pipeline(options: Namespace) -> Pipeline:
        assert options.adapter is None and options.segmenter is None
        return make_pipeline()

    monkeypatch.setattr(answer_commands, "pipeline_of", pipeline)
    write_data(tmp_path, PHRASES)
    data = ["--dataset", "jsonl", "--path", str(tmp_path / "own.jsonl")]
    assert main(["calibrate", str(run.path), *data, "--json", str(tmp_path / "c.json")]) == 0
    printed, told = capsys.readouterr()
    assert printed.count("cross-fitted") == 2 and "36 predictions" in told
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["objects"]["n"] == 24 and record["calibration"] == json.loads(
        (run.path / "calibration.json").read_text()
    )
    assert (run.path / "calibration/jsonl-own/predictions.jsonl").is_file()
    assert run.calibration is not None and run.calibration.fitted_on == f"jsonl {tmp_path / 'own.jsonl'}"
    assert main(["calibrate", str(tmp_path / "none"), *data]) == 2
    assert "no such run folder" in capsys.readouterr().err
