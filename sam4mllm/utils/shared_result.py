"""A result that one process hands to the others of its machine in a file of temporary data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sam4mllm.utils.garbage import paused_garbage_collection

T = TypeVar("T")


def write_shared(result: object, folder: Path) -> str:
    """Write a result that pickle can copy to a file in `folder`, and return its path; "" if the disk has no room."""
    path = folder / "result.pickle"
    try:
        with path.open("wb") as file, paused_garbage_collection():
            pickle.dump(result, file, protocol=pickle.HIGHEST_PROTOCOL)
    except OSError:
        return ""
    return str(path)


def read_shared(path: str, compute: Callable[[], T]) -> T:
    """Return the result in a file of `write_shared`; that of `compute` where there is no such file of this user.

    A pickle may run any code, so a file of another user is not read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                with paused_garbage_collection():
                    return pickle.load(file)
    except OSError:
        pass
    return compute()
