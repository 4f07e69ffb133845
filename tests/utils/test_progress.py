"""The progress bar: silent where nobody looks, and it counts what it is told."""

from __future__ import annotations

import sys

import pytest

from sam4mllm.utils.progress import bar


def test_a_bar_is_silent_when_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("predict", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_shows_title_and_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with bar("predict", 5, done=2, unit="phrases") as advance:
        advance(3)
    shown = capsys.readouterr().err
    assert "predict" in shown and "5/5" in shown and "phrases" in shown
