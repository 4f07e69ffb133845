"""The benchmark of memory: every stage does all queries, and the growth is that between two numbers of queries."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.scripts import load_script


def test_every_stage_is_measured_for_every_number_of_queries(tmp_path, monkeypatch, capsys) -> None:
    tool = load_script("bench_memory")
    peaks = iter(range(1000, 10_000, 100))

    def in_this_process(command, **options):  # type: ignore[no-untyped-def]
        figures = tool.measure(command[command.index("--stage") + 1], Path(command[command.index("--folder") + 1]))
        return SimpleNamespace(stdout=json.dumps(figures | {"peak_bytes": next(peaks)}))

    monkeypatch.setattr(tool.subprocess, "run", in_this_process)
    tool.main(["--queries", "7", "12", "--json", str(tmp_path / "new/memory.json")])
    rows = json.loads((tmp_path / "new/memory.json").read_text())["rows"]
    assert [(row["stage"], row["done"]) for row in rows] == [
        (stage, count) for count in (7, 12) for stage in tool.STAGES
    ]
    # Four stages per number of queries, each 100 bytes above the one before.
    assert [row["bytes_a_query"] for row in rows] == [None] * 4 + [400 / 5] * 4
    printed = capsys.readouterr().out
    assert printed.count("predict again") == 2 and "bytes a query" in printed


def test_numbers_of_queries_are_ascending(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("bench_memory").main(["--queries", "10", "5"])
    assert "in ascending order" in capsys.readouterr().err


def test_the_peak_is_that_of_this_process() -> None:
    assert load_script("bench_memory").peak_bytes() > 2**24
