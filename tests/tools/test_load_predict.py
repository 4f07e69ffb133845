"""A small version of tools/load_predict.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts import load_script


def test_a_small_load_ends_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_script("load_predict")
    assert tool.main(["--images", "100", "--json", str(tmp_path / "load.json")]) == 0, capsys.readouterr().out
    figures = json.loads((tmp_path / "load.json").read_text())
    assert figures["statuses"] == {"ok": 980, "malformed": 10, "error": 10}
    assert figures["problems"] == [] and figures["queries"] == 1000
    # Shards that were completed before the interruptions are not computed again.
    assert figures["answers_of_last_part"] < 700


def test_a_missing_and_a_wrong_line_are_problems(tmp_path: Path) -> None:
    tool = load_script("load_predict")
    queries = [{"id": name, "image": "a.png", "phrase": "object"} for name in ("1", "2", "3")]
    (tmp_path / "out").mkdir()
    lines = [{"id": "1", "status": "ok"}, {"id": "2", "status": "error"}]
    (tmp_path / "out/predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems: list[str] = []
    tool.check_lines(tmp_path, queries, [], problems)
    assert problems == ["2 lines for 3 queries, 2 of them wrong or missing"]
