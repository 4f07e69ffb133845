"""Files that are whole or not there: a kill at any moment leaves the old file or the new one, never a piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(place: Path) -> Iterator[Path]:
    """A path beside `place` to write to; brought to the disk and renamed to `place` when the block ends well.

    Two processes that write one file do not meet; the last one's stays.
    """
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)


def atomic_write_text(place: Path, text: str) -> None:
    """The text as the whole file `place`, in UTF-8."""
    with atomic_path(place) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
