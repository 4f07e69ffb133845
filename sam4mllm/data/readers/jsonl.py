"""Data of one's own as JSONL: one record a line (see `records.py`); and any samples written as such a file.

Paths are relative to the file's folder. This module knows nothing about models or scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sam4mllm.data.readers.records import Records, record_of, samples_of_lines
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """The samples of a file, in its order; ids are the lines' own, or `jsonl/{file stem}/{line}`.

    Args:
        path: the file.
        images: the folder from which paths of images start, where it is not the file's.
        limit: at most so many samples, from the beginning; no line after them is read.

    Raises:
        DataError: no such file, no sample in it, or bad lines (all counted, the first ten told by line number).
    """
    records = Records(f"jsonl/{path.stem}", path.parent if images is None else images, path.parent)
    samples = samples_of_lines(path, records.samples, limit)
    if not samples:
        raise DataError(f'{path}: no sample in it; a line is {{"image": path, "phrase": text, "masks": [mask, ...]}}')
    return samples


def write_jsonl(samples: Sequence[Sample], path: Path) -> None:
    """Write samples as a file from which `read` makes them again; a reader sees all of it or nothing.

    Raises:
        DataError: the file's folder does not exist.
    """
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: its folder {path.parent} does not exist; make it first")
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(record_of(sample, path.parent), ensure_ascii=False, allow_nan=False) + "\n")
