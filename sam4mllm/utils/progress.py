"""Progress of long stages on standard error: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
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

    The lines for logs are printed by a thread, so they also come while a single item takes long.

    Yields:
        The function to call with the number of items just finished.
    """
    if not shown:
        yield ignore
    elif not sys.stderr.isatty():
        counter = _Counter(title, total, done, unit)
        with _repeated(counter.print_line, SECONDS_BETWEEN_LINES):
            yield counter
    else:
        from tqdm import tqdm

        with tqdm(
            desc=title, total=total, initial=done, unit=f" {unit}", dynamic_ncols=True, file=sys.stderr
        ) as progress:
            yield progress.update


@contextmanager
def _repeated(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `action` every `seconds` in a thread, until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Counter:
    """An `Advance` that counts, and prints the count and the remaining time as a line."""

    def __init__(self, title: str, total: int, done: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._before = self._done = done
        self._start = time.monotonic()

    def __call__(self, count: int = 1, /) -> None:
        self._done += count

    def print_line(self) -> None:
        """Print the number of finished items, and the time that the others take at the same rate."""
        done = self._done
        line = f"{self._title}: {done} of {self._total} {self._unit}"
        if done > self._before:
            seconds_left = (time.monotonic() - self._start) / (done - self._before) * (self._total - done)
            line += f", about {timedelta(seconds=round(seconds_left))} left"
        print(line, file=sys.stderr, flush=True)
