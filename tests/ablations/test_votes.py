"""The experiment "votes" on tiny random models: the greedy row is the baseline, and finished rows are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts import load_script, small_experiment


def test_the_experiment_runs_on_tiny_models_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = small_experiment("votes", tmp_path, "--seeds", "1", "--votes", "1", "2", "--scenes", "1")
    load_script("run").main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == ["greedy", "2 votes"] and list(record["differences"]) == ["2 votes - greedy"]
    assert all(row["0"]["seconds_a_query"] > 0 for row in record["rows"].values())
    assert "| 2 votes - greedy |" in printed
    jobs = [json.loads(file.read_text()) for file in sorted(tmp_path.rglob("votes-*/refcoco/job.json"))]
    assert [job.get("votes", {}).get("samples") for job in jobs] == [None, 2]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shards/*.jsonl")}
    load_script("run").main(arguments)
    assert before and before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shards/*.jsonl")}
    assert json.loads((tmp_path / "table.json").read_text())["rows"]["greedy"]["0"]["seconds_a_query"] is None
