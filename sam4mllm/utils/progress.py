"""One progress bar for every long stage: what is being done, how much of it is done, how long it still takes.

It writes to standard error and is silent when that is not a terminal, so that logs and pipes stay clean. This module
does not know what is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called by a stage with the number of things that it has just finished."""

    def __call__(self, count: int = 1, /) -> object: ...


def ignore(count: int = 1, /) -> None:
    """The `Advance` of a caller who does not want to know."""


@contextmanager
def bar(title: str, total: int, *, done: int = 0, unit: str = "", shown: bool = True) -> Iterator[Advance]:
    """A progress bar of `total` steps, of which `done` were finished by an earlier run; none where not `shown`.

    Yields:
        The function to call with the number of steps just finished.
    """
    from tqdm import tqdm

    with tqdm(
        desc=title,
        total=total,
        initial=done,
        unit=f" {unit}" if unit else "it",
        disable=not (shown and sys.stderr.isatty()),
        dynamic_ncols=True,
        file=sys.stderr,
    ) as progress:
        yield progress.update


@contextmanager
def no_bar_in_a_log() -> Iterator[None]:
    """Without transformers' own progress bars where standard error is no terminal."""
    from transformers.utils import logging

    hidden = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()
