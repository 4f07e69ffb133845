"""The comparison of the methods: its table, and the whole of it on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.small_models import load_tool, small_table


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("table_methods")


def test_the_table_is_in_percent_but_for_points_and_seconds(tool: ModuleType) -> None:
    row = tool.Row(0.7, 0.8, 0.6, 0.9, 0.5, 0.01, 2.96, 0.1234, None, 0.042)
    header, rule, line = tool.table({"PPG": row})
    assert header.count("|") == rule.count("|") == line.count("|") == 12
    assert line == "| PPG | 70.0 | 80.0 | 60.0 | 90.0 | 50.0 | 1.0 | 3.0 | 0.123 | - | 4.2 |"


def test_the_whole_table_on_tiny_models_goes_on_where_it_was(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_table(tmp_path, "--steps", "1", "--only", "PPG", "--only", "PQPP, lists")
    tool.main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == ["PPG", "PQPP, lists"] and set(record["queries"]) == set(tool.TESTS)
    assert all(row["malformed"] == 1 and row["res_ciou"] == 0 for row in record["rows"].values())
    assert len(printed.splitlines()) == 4

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.train.trainer.fit", refuse)
    tool.main(arguments)
    assert capsys.readouterr().out == printed
