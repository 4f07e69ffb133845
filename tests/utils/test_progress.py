"""The progress of a stage: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import sys

import pytest

from sam4mllm.utils import progress
from sam4mllm.utils.progress import bar
from tests.utils.fake_clock import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock.install(monkeypatch)


def test_a_short_stage_prints_nothing_where_standard_error_is_not_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bar("predict", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_long_stage_prints_a_line_every_30_seconds(capsys: pytest.CaptureFixture[str], clock: FakeClock) -> None:
    with bar("predict", 100, done=10, unit="phrases") as advance:
        for seconds, count in [(29, 5), (0, 5), (1, 0), (29, 20), (1, 0), (10, 60)]:
            clock.move(seconds)
            advance(count)
    assert capsys.readouterr() == (
        "",
        "predict: 20 of 100 phrases, about 0:04:00 left\npredict: 40 of 100 phrases, about 0:02:00 left\n",
    )


def test_a_line_comes_every_30_seconds_while_one_item_takes_minutes(
    capsys: pytest.CaptureFixture[str], clock: FakeClock
) -> None:
    with bar("predict", 2, unit="phrases") as advance:
        for _ in range(4):
            clock.move(30)
        advance()
    assert capsys.readouterr().err == "predict: 0 of 2 phrases\n" * 4


def test_no_line_comes_after_a_stage_that_failed(capsys: pytest.CaptureFixture[str], clock: FakeClock) -> None:
    with pytest.raises(KeyError), bar("predict", 2):
        clock.move(30)
        raise KeyError
    assert capsys.readouterr().err == "predict: 0 of 2 items\n" and not clock.has_waiting_thread


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
