"""The experiment "nextchat": its rows' figures, equal seconds, and a run on tiny random models that resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from sam4mllm.recipe.loading import load_recipe
from tests.scripts import load_script, small_experiment


@pytest.fixture(scope="module")
def nextchat() -> ModuleType:
    return load_script("measure_nextchat")


@pytest.mark.parametrize(("own", "steps"), [(0.5, 40), (0.2, 100), (1000.0, 1)])
def test_equal_seconds_are_as_many_steps_as_fit_into_the_time_of_ppg(
    nextchat: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: float, steps: int
) -> None:
    recipes = {
        name: load_recipe("shapes_ppg", [*settings, "training.max_steps=100"])
        for name, settings in nextchat.VARIANTS.items()
    }
    experiment = nextchat.NextchatExperiment(0, recipes, {}, "val", tmp_path, "cpu")
    seconds = {"PPG": 0.2, "pix2emb, both": own}
    monkeypatch.setattr(nextchat.NextchatExperiment, "seconds_a_step", lambda self, name: seconds[name])
    timed = experiment.with_equal_seconds("pix2emb, both").recipes
    assert timed["pix2emb, both"].training.arguments["max_steps"] == steps
    assert timed["pix2emb, both"].training.validation == recipes["pix2emb, both"].training.validation
    assert timed["PPG"] == recipes["PPG"]


def test_the_seconds_of_a_step_are_the_median_and_stay_if_a_finished_training_resumes(
    nextchat: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 1.0, 5.0, 7.0, 10.0, 110.0])
    monkeypatch.setattr(nextchat, "perf_counter", lambda: next(times))
    timer = nextchat._StepTimer(tmp_path / "seconds.json")
    for _ in range(3):
        timer.on_step_begin(None, None, None)
        timer.on_step_end(None, None, None)
    timer.on_train_end(None, None, None)
    nextchat._StepTimer(tmp_path / "seconds.json").on_train_end(None, None, None)
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"seconds_a_step": 2.0}


def test_parameters_are_the_values_in_the_adapter(nextchat: ModuleType, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "adapter.safetensors")
    assert nextchat._parameters(tmp_path / "adapter.safetensors") == 17


def test_the_table_has_percent_and_plain_figures(nextchat: ModuleType) -> None:
    fields = dict.fromkeys(nextchat.NextchatRow.__dataclass_fields__)
    row = nextchat.NextchatRow(**{**fields, "res_ciou": 0.5, "answer_tokens": 1.25, "steps": 30, "parameters": 0.5})
    better = replace(row, res_ciou=0.75)
    lines = nextchat.tables({"PPG": {0: row}, "pix2emb, both": {0: better}})
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["PPG", "50.0"] and cells[-4:] == ["-", "0.500", "30", "-"]
    assert len(cells) == len(lines[0].strip("|").split("|"))
    assert lines[-1].startswith("| pix2emb, both - PPG | +25.0 | - |")


def test_the_experiment_runs_on_tiny_models_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nextchat: ModuleType
) -> None:
    rows = ("PPG", "pix2emb, both")
    monkeypatch.setattr(nextchat, "VARIANTS", {name: nextchat.VARIANTS[name] for name in ("box alone", *rows)})
    monkeypatch.setattr(nextchat, "TIMED_STEPS", 2)
    arguments = small_experiment("nextchat", tmp_path, "--steps", "1", "--seeds", "1", "--split", "val")
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == [f"{name}{end}" for end in ("", ", equal seconds") for name in ("box alone", *rows)]
    both, ppg = record["rows"]["pix2emb, both"]["0"], record["rows"]["PPG"]["0"]
    assert both["steps"] == 1 and both["seconds_a_step"] > 0 and both["answer_tokens"] > 0
    # The heads and the token's row are trained beside LoRA's weights.
    assert both["parameters"] > ppg["parameters"] > 0
    assert record["rows"]["PPG, equal seconds"] == record["rows"]["PPG"]
    # One row for equal steps, one for equal seconds where these are other steps, and one for the time of a step.
    assert len(list(tmp_path.glob("work/seed-0/PPG-*/adapter_model.safetensors"))) == 2

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    load_script("run").main(arguments)
    again = capsys.readouterr().out.splitlines()
    assert again == printed[-len(again) :] and len(again) == 14
