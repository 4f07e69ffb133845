"""A lock on a folder, so that a second job that would write to it is refused.

The lock is the operating system's lock on a file, which ends with its process, also with one that is killed.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sam4mllm.errors import DataError, LaunchError
from sam4mllm.utils.atomic_io import remove_temporary_files, writing

logger = logging.getLogger(__name__)

LOCK_FILE = ".sam4mllm.lock"
"""The name of the lock file in its folder; it contains what its process does, and is removed when the job ends."""

_BUSY = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems without locks, such as some network file systems."""

# The locks of this process by file: the thread that holds it, and how many nested blocks of that thread do.
_held: dict[Path, tuple[int, int]] = {}


@contextmanager
def folder_lock(
    folder: Path, work: str, *, subfolders: Sequence[str | Path] = (), beside: bool = False, active: bool = True
) -> Iterator[None]:
    """Hold the lock on `folder` inside the block; nested blocks of one thread share it.

    Temporary files that a killed process left in the folder and in its `subfolders` are removed at the beginning. If
    the block writes nothing to a new folder, the folder is removed at the end.

    Args:
        folder: The folder that the block writes to; created if it does not exist (with `beside`, only its parent).
        work: What the block does ("training"), for the error of the second process.
        subfolders: Subfolders that the block writes to, relative to `folder`.
        beside: Whether the lock file is beside the folder, because the block creates the folder at its end.
        active: Whether this process takes the lock; of the processes of one job, only the main one does.

    Raises:
        LaunchError: Another process, or another thread of this one, holds the lock.
        DataError: The folder, or one above it, is a file.
        OSError: The lock file cannot be created; `filename` is `folder`.
    """
    if not active:
        yield
        return
    check_not_file(folder.parent if beside else folder)
    target, created = folder.resolve(), False
    file = target.with_name(f".{target.name}{LOCK_FILE}") if beside else target / LOCK_FILE
    thread, (owner, depth) = threading.get_ident(), _held.get(file, (0, 0))
    if depth and owner != thread:
        raise _busy(folder, _content(work))
    descriptor = None
    if not depth:
        created = not beside and not folder.exists()
        (folder.parent if beside else folder).mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file, folder, work)
    _held[file] = (thread, depth + 1)
    try:
        if not depth and not beside:
            for each in (target, *(target / name for name in subfolders)):
                remove_temporary_files(each)
        yield
    finally:
        if depth:
            _held[file] = (thread, depth)
        else:
            del _held[file]
            if descriptor is not None:
                _release(file, descriptor)
            if created:
                # It fails where the block has written to the folder.
                with suppress(OSError):
                    target.rmdir()


def check_not_file(folder: Path) -> None:
    """Check that neither a folder that is to be written to nor one above it is a file.

    Raises:
        DataError: One of them is a file, or a symbolic link that leads nowhere; it is named.
    """
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            kind = "a file" if path.exists() else "a symbolic link that leads nowhere"
            raise DataError(f"{path}: is {kind}, and a folder is to be written there; give another output")


def remove_stale_lock(folder: Path) -> None:
    """Remove the lock file and the temporary files that a killed process left in `folder`, where nothing is written.

    The lock of a running process, and a folder that cannot be written, are left alone.
    """
    if (folder / LOCK_FILE).exists():
        with suppress(LaunchError, OSError), folder_lock(folder, "removing files of a killed job"):
            pass


def _acquire(file: Path, folder: Path, work: str) -> int | None:
    """Lock `file` and return its descriptor; None where the system or the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        try:
            # Child processes do not inherit this kind of lock, so the workers of a killed process do not hold it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_current(file, descriptor):
                # Its process removed the file after it was opened here.
                os.close(descriptor)
                continue
            with writing(folder):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _content(work).encode())
            return descriptor
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            if error.errno in _BUSY:
                raise _busy(folder, holder) from None
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("%s: this file system has no locks; start no second job on this folder", folder)
            return None


def _release(file: Path, descriptor: int) -> None:
    if _is_current(file, descriptor):
        file.unlink()
    os.close(descriptor)


def _is_current(file: Path, descriptor: int) -> bool:
    """Return whether `file` is still the file that was opened as `descriptor`."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _content(work: str) -> str:
    return f"{work}\nprocess {os.getpid()} on {socket.gethostname()}\n"


def _busy(folder: Path, content: str) -> LaunchError:
    work, _, process = content.strip().partition("\n")
    job = f"another job is {work} here ({process})" if process else "another job is writing here"
    return LaunchError(f"{folder}: {job}; wait until it ends, or choose another folder")
