"""The experiment "packing": equal phrases seen by each row, and a run on tiny random models that resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam4mllm.recipe.loading import load_recipe
from sam4mllm.synthetic.writer import write_dataset
from tests.scripts import load_script, small_experiment


def test_each_row_sees_every_phrase_equally_often_and_about_as_many_in_a_step(tmp_path: Path) -> None:
    write_dataset(tmp_path, scenes=4, seed=0)
    packing = load_script("measure_packing")
    data = [*(f"data.train.{index}.root={tmp_path}" for index in range(3)), "method.coordinates=grid"]
    trainings, batches = {}, {}
    for name, settings in packing.VARIANTS.items():
        recipe = load_recipe("shapes_ppg", [*data, "data.validation=null", *settings])
        overrides, trainings[name] = packing.plan(recipe, epochs=2)
        arguments = load_recipe("shapes_ppg", [*data, *settings, *overrides]).training.arguments
        batches[name] = arguments["per_device_train_batch_size"]
        assert arguments["max_steps"] == trainings[name].steps == 2 * -(-trainings[name].conversations // batches[name])
    one, turns, isolated = (trainings[name] for name in packing.VARIANTS)
    assert one.phrases == turns.phrases == isolated.phrases == one.conversations
    assert isolated.conversations < turns.conversations < one.conversations
    for name, training in trainings.items():
        assert 6 <= batches[name] * training.phrases / training.conversations <= 10


def test_the_experiment_runs_on_tiny_models_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("packing", tmp_path, "--seeds", "1", "--split", "val")
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == ["one phrase", "turns", "isolated"]
    assert list(record["differences"]) == ["isolated - turns", "isolated - one phrase", "turns - one phrase"]
    assert all(each["0"]["seconds"] > 0 and each["0"]["phrases"] == 12 for each in record["trainings"].values())
    assert any("phrases seen" in line for line in printed)

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    load_script("run").main(arguments)
    again = capsys.readouterr().out.splitlines()
    assert again == printed[-len(again) :] and len(again) > 10
