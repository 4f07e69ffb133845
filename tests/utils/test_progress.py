"""The progress of a stage: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import sys

import pytest

from sam4mllm.utils import progress
from sam4mllm.utils.progress import bar


def test_a_short_stage_prints_nothing_where_standard_error_is_not_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bar("predict", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_long_stage_prints_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with bar("predict", 100, done=10, unit="phrases") as advance:
        for seconds, count in [(29, 5), (1, 5), (29, 10), (1, 10), (10, 60)]:
            now += seconds
            advance(count)
    assert capsys.readouterr() == (
        "",
        "predict: 20 of 100 phrases, about 0:04:00 left\npredict: 40 of 100 phrases, about 0:02:00 left\n",
    )


def test_a_process_that_is_not_the_main_one_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with bar("predict", 3, shown=False) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_shows_title_and_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with bar("predict", 5, done=2, unit="phrases") as advance:
        advance(3)
    shown = capsys.readouterr().err
    assert "predict" in shown and "5/5" in shown and "phrases" in shown
