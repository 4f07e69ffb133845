"""The table of export formats: one row each. `sam4mllm export --to` takes a format's name.

A format is one row here and one module with a function `write(images, output, options)`, which writes the file or
the files of the folder. Nothing heavy is imported here, so the parser of the command line can use the table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path, check_folder_of, writing

LOCAL_FILES = "/data/local-files/?d="
"""The beginning of the URLs of Label Studio's local files."""

OBJECT_LABEL = "object"
"""The only category of a file that holds the phrases as attributes."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a file is written.

    as_attribute: whether the phrase is an attribute of the category `object`; else it is the category.
    url_prefix: for Label Studio: the beginning of the URL of each image; the path from the folder that holds all images
        follows.
    """

    as_attribute: bool = False
    url_prefix: str = LOCAL_FILES


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format of the table.

    name: the value of `--to`.
    module: the module that writes it.
    beginning: how a file of this format begins; None for a format that is a folder.
    """

    name: str
    module: str
    beginning: bytes | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.beginning is None

    def write(self, *arguments: Any) -> None:
        """Call the function `write` of the module."""
        writer: Callable[..., None] = import_module(self.module).write
        writer(*arguments)


FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        row.name: row
        for row in (
            ExportFormat("coco", "sam4mllm.export.coco", b'{"info"'),
            ExportFormat("yolo", "sam4mllm.export.yolo"),
            ExportFormat("labelstudio", "sam4mllm.export.label_studio"),
            ExportFormat("cvat", "sam4mllm.export.cvat"),
            ExportFormat("png", "sam4mllm.export.png"),
            ExportFormat("fiftyone", "sam4mllm.export.fiftyone"),
        )
    }
)
"""Every format by its name, in the order of `--help`."""


@contextmanager
def atomic_output(path: Path, row: ExportFormat) -> Iterator[Path]:
    """Yield a temporary file or folder to write to; it becomes `path` when the block ends without an error.

    Raises:
        DataError: `path` is a folder where a file is written.
        OSError: It cannot be written.
    """
    if not row.is_folder:
        with atomic_path(path) as temporary:
            yield temporary
        return
    unfinished = path.absolute().with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            unfinished.mkdir()
            yield unfinished
            os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_output(path: Path, row: ExportFormat) -> None:
    """Check, before any work, that a format can be written to `path`; a folder must be new or empty.

    Raises:
        DataError: Its folder does not exist; a file, or a folder that holds files, where a folder is written.
    """
    check_folder_of(path)
    if not row.is_folder:
        return
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(f"{path}: is a file or a link; give a new folder with --output")
    if path.is_dir() and any(path.iterdir()):
        raise DataError(f"{path}: is not empty; give a new folder with --output")
