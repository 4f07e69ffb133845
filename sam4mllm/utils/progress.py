"""Progress of long stages on standard error: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

SECONDS_BETWEEN_LINES = 30.0
"""Seconds between two lines where standard error is not a terminal; shorter stages print nothing there."""


class Advance(Protocol):
    """A callback that a stage calls with the number of items it has just finished."""

    def __call__(self, count: int = 1, /) -> object: ...


def ignore(count: int = 1, /) -> None:
    """Do nothing: the `Advance` of callers that show no progress."""


@contextmanager
def bar(title: str, total: int, *, done: int = 0, unit: str = "items", shown: bool = True) -> Iterator[Advance]:
    """Show the progress of `total` items, of which an earlier run finished `done`; show nothing unless `shown`.

    Yields:
        The function to call with the number of items just finished.
    """
    if not shown:
        yield ignore
    elif not sys.stderr.isatty():
        yield _ProgressLines(title, total, done, unit)
    else:
        from tqdm import tqdm

        with tqdm(
            desc=title, total=total, initial=done, unit=f" {unit}", dynamic_ncols=True, file=sys.stderr
        ) as progress:
            yield progress.update


class _ProgressLines:
    """An `Advance` that prints a line every 30 seconds, for logs."""

    def __init__(self, title: str, total: int, done: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._before = self._done = done
        self._start = self._last_line = time.monotonic()

    def __call__(self, count: int = 1, /) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        line = f"{self._title}: {self._done} of {self._total} {self._unit}"
        if self._done > self._before:
            seconds_left = (now - self._start) / (self._done - self._before) * (self._total - self._done)
            line += f", about {timedelta(seconds=round(seconds_left))} left"
        print(line, file=sys.stderr, flush=True)
