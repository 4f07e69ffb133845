"""The image files of a batch job: decoded in worker threads before they are needed, and recognized when replaced."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sam4mllm.data.image_sources import ImageSource, StoredImage
from sam4mllm.data.images import Rgb, decode_image, load_image
from sam4mllm.data.records import file_exists
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import file_sha256

_READERS = 4
"""Worker threads that decode images; Pillow decodes without Python's global lock."""


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """What identifies the content of an image file: the SHA-256 of its bytes, and the file system's record of it.

    While the record (size in bytes, times of the last change of content and of metadata in nanoseconds, inode) is the
    same, the file has not been replaced, and its bytes need not be read again.
    """

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> ImageVersion:
        """Read the file's record, then its bytes, so that a later replacement has another record."""
        size, mtime_ns, ctime_ns, inode = _record(path)
        return cls(file_sha256(path), size, mtime_ns, ctime_ns, inode)

    @classmethod
    def of_bytes(cls, content: bytes) -> ImageVersion:
        """Return the version of an image that is not a local file, which has no record."""
        return cls(hashlib.sha256(content).hexdigest(), len(content), -1, -1, -1)

    @classmethod
    def from_json(cls, value: dict[str, Any] | str) -> ImageVersion:
        """Build a version from the value of `to_json`, or from the SHA-256 alone, which earlier versions wrote."""
        return cls(value, -1, -1, -1, -1) if isinstance(value, str) else cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return asdict(self)

    def was_replaced(self, path: Path) -> bool:
        """Return whether the file has other bytes now; they are read only if the record differs.

        A file that does not exist any more is not a replaced one.
        """
        if not file_exists(path) or _record(path) == (self.size, self.mtime_ns, self.ctime_ns, self.inode):
            return False
        return file_sha256(path) != self.sha256


def _record(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image file's pixels, or the reason why it has none.

    `version` is that of the file before it was decoded, so an image that was replaced meanwhile is recognized later;
    None if there was no file, or none that can be opened.
    """

    path: ImageSource
    version: ImageVersion | None
    pixels: Rgb | None
    error: str | None = None

    @classmethod
    def load(cls, path: ImageSource) -> DecodedImage:
        """Read and decode a file; an image that cannot be read has an `error`."""
        version = None
        if isinstance(path, StoredImage):
            try:
                content = path.read()
                version = ImageVersion.of_bytes(content)
                return cls(path, version, decode_image(content, path))
            except DataError as error:
                return cls(path, version, None, str(error))
        # A file that cannot be opened, or has no valid name, is an error of `load_image`, which states the reason.
        with suppress(OSError, ValueError):
            version = ImageVersion.of(path)
        try:
            return cls(path, version, load_image(path))
        except DataError as error:
            return cls(path, version, None, str(error))


class ReadAhead:
    """A queue of images that worker threads decode in the order of their paths, `ahead` images before they are needed.

    A context manager: at its end, images that no thread has begun to decode are given up.
    """

    def __init__(self, ahead: int) -> None:
        self._paths: deque[ImageSource] = deque()
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(_READERS, "read-ahead")
        self._queue: deque[Future[DecodedImage]] = deque()

    def add(self, paths: Iterable[ImageSource]) -> None:
        """Append images, which are decoded after those before them."""
        self._paths.extend(paths)

    def first(self, count: int) -> list[DecodedImage]:
        """Return the next `count` images, which stay until `drop`, and begin to decode those after them."""
        while self._paths and len(self._queue) < count + self._ahead:
            self._queue.append(self._pool.submit(DecodedImage.load, self._paths.popleft()))
        return [future.result() for future in islice(self._queue, count)]

    def drop(self, count: int) -> None:
        """Remove the next `count` images from the queue, so that their memory is free."""
        for _ in range(count):
            self._queue.popleft()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
