"""Atomic writes of files (temporary file, fsync, rename), the check of an output folder, and the digest of a file.

A process that is killed at any moment leaves the old file or the new one, never a part of one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam4mllm.errors import DataError


def check_folder_of(file: Path) -> None:
    """Check that the folder exists that `file` is to be written to.

    Raises:
        DataError: It does not exist.
    """
    if not file.absolute().parent.is_dir():
        raise DataError(f"{file}: its folder {file.parent} does not exist; create it first")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` when the block ends without an error.

    Processes that write the same file at the same time use different temporary files; the last one to finish wins.

    Raises:
        FileNotFoundError: Nothing was written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
