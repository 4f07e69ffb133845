"""Pausing Python's cyclic garbage collection while many objects are created that remain in use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Collect no cyclic garbage in the block, which otherwise examines the objects again and again as they grow more.

    This is for reading files of JSON with millions of values. Objects without cycles are freed as usual. Nothing
    changes if collection is disabled already.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
