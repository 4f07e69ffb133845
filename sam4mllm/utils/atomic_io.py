"""Atomic writes of files (temporary file, fsync, rename), errors of a write that name its file, and a file's digest.

A process that is killed at any moment leaves the old file or the new one, never a part of one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam4mllm.errors import DataError

# How libraries written in C++ and Rust, and shutil, quote the system's error number in a message.
_QUOTED_ERRNO = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)
# The message of torch.save when a write fails, which does not state why.
_TORCH_WRITE_ERROR = re.compile(r"PytorchStreamWriter|inline_container")
_PROBE_BYTES = 2**20
# The name of a temporary file: a point, the final name, the process, and the suffix that libraries choose a format by.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(\.[^.]+)?")


def check_folder_of(file: Path) -> None:
    """Check that the folder that `file` is to be written to exists and can be written to, before any work is done.

    Raises:
        DataError: It does not exist, or files cannot be created in it; or `file` is a loop of symbolic links.
    """
    if not file.absolute().parent.is_dir():
        raise DataError(f"{file}: its folder {file.parent} does not exist; create it first")
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{file}: is a loop of symbolic links; remove it, or give another file") from error
        mode = stat.S_IFREG
    # A pipe or a device is written through. On a file system that is read-only, access is denied to a superuser, too.
    if stat.S_ISREG(mode) and not os.access(file.absolute().parent, os.W_OK):
        raise DataError(f"{file}: its folder {file.parent} cannot be written to; give a file elsewhere")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let errors of the block that a write caused name `path`, the file or folder that the block writes.

    A full disk fails in a write, whose error has no file name, and in libraries as an exception of their own type.
    Other exceptions, and errors that name a file, are not changed.

    Raises:
        OSError: A write failed; `filename` is `path`.
    """
    try:
        yield
    except Exception as error:
        number = _write_errno(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` when the block ends without an error.

    Processes that write the same file at the same time use different temporary files; the last one to finish wins. If
    `path` is a symbolic link, the file that it points to is replaced, and the link is kept.

    Raises:
        DataError: `path` is a folder, a pipe or a device.
        OSError: A write failed, or nothing was written; `filename` is `path`.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file, so it cannot be replaced; give another path")
    target = path.resolve() if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{target.suffix}")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`; no other process may be writing there."""
    for file in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose processes have ended; others may be writing to the same folder."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
        found = _TEMPORARY.fullmatch(file.name)
        if found and not _is_running(int(found[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is that of another user.
        return True
    return True


def remove_folder(folder: Path) -> None:
    """Remove `folder` atomically: a process that is killed leaves all of it, or a part under the name `removed-...`."""
    removed = folder.with_name(f"removed-{folder.name}")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(folder, removed)
    shutil.rmtree(removed)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_errno(error: Exception, path: Path) -> int | None:
    """Return the system's error number of a failed write that names no file; None for any other exception."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.filename is None else None
    # safetensors is not imported for the type of its error: it loads torch.
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        quoted = _QUOTED_ERRNO.search(str(error))
        return int(quoted[1]) if quoted else None
    if isinstance(error, RuntimeError) and _TORCH_WRITE_ERROR.search(str(error)):
        return _probed_errno(path if path.is_dir() else path.parent)
    return None


def _probed_errno(folder: Path) -> int | None:
    """Return the error number of writing a temporary file of 1 MiB to `folder`; None if it can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None
