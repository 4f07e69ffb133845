"""Images that are not local files: at a URL that fsspec knows, or as bytes in a column of a Parquet file."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from sam4mllm.errors import DataError


class StoredImage(ABC):
    """An image whose encoded bytes (JPEG, PNG, ...) are read from a store; its text identifies it in files."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            DataError: They cannot be read.
        """
        ...

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ImageUrl(StoredImage):
    """An image at a URL, which fsspec reads: s3://, gs://, hf://, https://, file:// and so on."""

    url: str

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            DataError: The URL cannot be read, or its protocol needs a package that is not installed.
        """
        import fsspec

        try:
            with fsspec.open(self.url, "rb") as file:
                content: bytes = file.read()
                return content
        # Each of fsspec's file systems has exceptions of its own.
        except Exception as error:
            raise DataError(f"{self.url}: cannot be read: {type(error).__name__}: {error}", "image") from error

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class ImageCell(StoredImage):
    """An image in the column `image` of a Parquet file: bytes, or the struct of bytes and path that `datasets` writes.

    row: from 0.
    """

    file: Path
    row: int

    def read(self) -> bytes:
        """Return the encoded bytes; those of the file at `path` where the struct has no bytes.

        Raises:
            DataError: The Parquet file has no such row, the row has no image, or its file cannot be read.
        """
        value: Any = _cell(str(self.file), self.row)
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        try:
            content = Path(path).read_bytes() if value is None and path else value
        except OSError as error:
            raise DataError(f"{self}: {path} cannot be read: {error.strerror}", "image") from error
        if not isinstance(content, bytes):
            raise DataError(f"{self}: the row has no image", "image")
        return content

    def __str__(self) -> str:
        return f"{self.file}#{self.row}"


ImageSource: TypeAlias = Path | StoredImage
"""Where an image is read from: a local file, or a store."""


def image_source(text: str) -> Path | ImageUrl:
    """Return the image that a line names: a URL if it has "://", else a local file."""
    return ImageUrl(text) if "://" in text else Path(text)


def check_protocol(url: str) -> None:
    """Check that fsspec knows the protocol of a URL; whether its package is installed is known when it is read.

    Raises:
        DataError: It does not.
    """
    from fsspec import available_protocols

    protocol = url.partition("://")[0].partition("::")[0]
    if protocol not in (known := available_protocols()):
        raise DataError(
            f"the URL {url!r} has a protocol that fsspec does not know; it knows {', '.join(sorted(known))}"
        )


_reading = threading.Lock()


def _cell(file: str, row: int) -> Any:
    """Return a row's value of the column `image`.

    Raises:
        DataError: The file cannot be read, or has no such row.
    """
    start = 0
    # Several threads ask for adjacent rows: the lock lets one of them read their row group.
    with _reading:
        try:
            for group, rows in enumerate(_group_rows(file)):
                if row < start + rows:
                    return _column(file, group)[row - start].as_py()
                start += rows
        # pyarrow's exceptions have OSError and ValueError as bases.
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file}#{row}: cannot be read: {error}", "image") from error
    raise DataError(f"{file}#{row}: the file has {start} rows", "image")


@lru_cache(maxsize=2)
def _group_rows(file: str) -> tuple[int, ...]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(file)
    return tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))


@lru_cache(maxsize=2)
def _column(file: str, group: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=["image"]).column("image")
