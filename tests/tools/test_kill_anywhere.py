"""A small version of tools/kill_anywhere.py, and what it compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/kill_anywhere.py"


def test_killed_stages_are_resumed_with_equal_files(tmp_path: Path) -> None:
    """It runs in a process of its own, because it forks, and a fork of a process with threads may hang."""
    command = [sys.executable, str(TOOL), "--tiny", "--kills", "2", "--stages", "prepare"]
    command += ["--json", str(tmp_path / "kills.json")]
    # The package of this checkout is found also where it is not installed, as in the environment of `make coverage`.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kills.json").read_text())["prepare"]
    assert result["problems"] == [] and result["at_operation"] == 1
    assert result["at_time"] + result["ended_before"] == 1
    assert result["files"] > 10 and result["operations"] > 10


def test_files_are_compared_without_dates_and_durations(tmp_path: Path) -> None:
    tool = load_script("kill_anywhere")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/r.json").write_text('{"splits": [{"seconds": 1.5, "n": 2}], "date": "2026-01-01"}')
    (tmp_path / "t.txt").write_text("one")
    before = tool.digests(tmp_path)
    assert set(before) == {"a/r.json", "t.txt"}
    (tmp_path / "a/r.json").write_text('{"splits": [{"seconds": 7, "n": 2}], "date": "2026-02-02"}')
    assert tool.differences(before, tool.digests(tmp_path)) == []
    (tmp_path / "a/r.json").write_text('{"splits": [{"seconds": 7, "n": 3}], "date": "2026-02-02"}')
    (tmp_path / "t.txt").unlink()
    (tmp_path / ".t.txt.7.tmp.txt").write_text("o")
    assert tool.differences(before, tool.digests(tmp_path)) == [
        "missing: t.txt",
        "additional: .t.txt.7.tmp.txt",
        "different: a/r.json",
    ]


def test_an_interrupt_must_end_the_process_soon_with_one_line(tmp_path: Path) -> None:
    tool = load_script("kill_anywhere")
    (tmp_path / "output.txt").write_text("sam4mllm: interrupted; run the same command again to resume\n")
    run = tool.Run(status=130, seconds=3.0, seconds_after_signal=0.4)
    assert tool.problems_of_end(run, tmp_path) == []
    assert tool.problems_of_end(tool.Run(status=0, seconds=3.0), tmp_path) == []
    slow = tool.Run(status=130, seconds=9.0, seconds_after_signal=2.5)
    assert tool.problems_of_end(slow, tmp_path) == ["ended 2.5 s after the interrupt"]
    (tmp_path / "output.txt").write_text("KeyboardInterrupt\n")
    assert tool.problems_of_end(run, tmp_path) == ["exit status 130, last line: KeyboardInterrupt"]
