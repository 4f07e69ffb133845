"""A clock that a test moves: the lines of `utils.progress` come at its times, and nothing waits for real seconds."""

from __future__ import annotations

import threading

import pytest

from sam4mllm.utils import progress

_LONGEST_WAIT = 10.0
"""Real seconds after which a test fails in place of hanging."""


class FakeClock:
    """The time in seconds, and the one thread that may wait for a later time or for the end of its stage."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._wakes_at: float | None = None
        self._changed = threading.Condition()

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
        """Let `utils.progress` use a new clock for its times and its thread."""
        clock = cls()
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
        monkeypatch.setattr(progress, "threading", _Threading(clock))
        return clock

    @property
    def has_waiting_thread(self) -> bool:
        return self._wakes_at is not None

    def move(self, seconds: float) -> None:
        """Move the time, and return when the thread, if it is time for it, has done its work and waits again."""
        with self._changed:
            self._wait_until(lambda: self.has_waiting_thread)
            self.now += seconds
            self._changed.notify_all()
            self._wait_until(lambda: self._wakes_at is not None and self._wakes_at > self.now)

    def wait(self, seconds: float, event: _Event) -> bool:
        """Wait until the time has moved by `seconds`, or the event is set; return whether it is set."""
        with self._changed:
            self._wakes_at = wakes_at = self.now + seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: event.is_set or self.now >= wakes_at)
            self._wakes_at = None
            return event.is_set

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait_until(self, condition) -> None:  # type: ignore[no-untyped-def]
        assert self._changed.wait_for(condition, timeout=_LONGEST_WAIT), "no thread waits for the time"


class _Event:
    """The part of `threading.Event` that `utils.progress` uses."""

    def __init__(self, clock: FakeClock) -> None:
        self.is_set = False
        self._clock = clock

    def set(self) -> None:
        self.is_set = True
        self._clock.wake()

    def wait(self, seconds: float) -> bool:
        return self._clock.wait(seconds, self)


class _Threading:
    """The part of `threading` that `utils.progress` uses, with events that wait for the clock."""

    Thread = threading.Thread

    def __init__(self, clock: FakeClock) -> None:
        self.Event = lambda: _Event(clock)
