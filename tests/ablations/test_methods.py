"""The experiment "methods": its table, and a run on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load_script, small_experiment


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return load_script("measure_methods")


def test_the_table_is_in_percent_but_for_points_and_seconds(experiment: ModuleType) -> None:
    row = experiment.Row(0.7, 0.8, 0.6, 0.9, 0.5, 0.01, 2.96, 0.1234, None, 0.042)
    header, rule, line = experiment.table({"PPG": row})
    assert header.count("|") == rule.count("|") == line.count("|") == 12
    assert line == "| PPG | 70.0 | 80.0 | 60.0 | 90.0 | 50.0 | 1.0 | 3.0 | 0.123 | - | 4.2 |"


def test_the_experiment_runs_on_tiny_models_and_resumes(
    experiment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("methods", tmp_path, "--steps", "1", "--only", "PPG", "--only", "PQPP, lists")
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == ["PPG", "PQPP, lists"] and set(record["queries"]) == set(experiment.TESTS)
    assert all(row["malformed"] == 1 and row["res_ciou"] == 0 for row in record["rows"].values())
    assert len(printed.splitlines()) == 4

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    load_script("run").main(arguments)
    assert capsys.readouterr().out == printed
