"""Reader of custom data as JSONL, one record of `custom_record.py` per line; and the writer of such files.

Relative paths start from the file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sam4mllm.data.readers.custom_record import CustomRecordParser, record_of, samples_of_lines
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.utils.atomic_io import atomic_path, check_folder_of


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of a file, in its order; ids are the records' own, or `jsonl/{file stem}/{line}`.

    Args:
        row: The data set's row of the table.
        path: The file.
        images: The folder that relative image paths start from; None for the file's folder.
        limit: The maximum number of samples, from the beginning; no line after them is read.

    Raises:
        DataError: No such file, no sample in it, or bad lines (all are counted, the first ten listed).
    """
    parser = CustomRecordParser(
        f"jsonl/{path.stem}", path.parent if images is None else images, path.parent, f"{path}, line"
    )
    empty = 'no sample in it; a line is {"image": path, "phrase": text, "masks": [mask, ...]}'
    return samples_of_lines(path, parser.samples, limit, empty=empty)


def write_jsonl(samples: Sequence[Sample], path: Path) -> None:
    """Write samples to a file that `read` parses to equal samples; the write is atomic.

    Raises:
        DataError: The file's folder does not exist.
    """
    check_folder_of(path)
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(record_of(sample, path.parent), ensure_ascii=False, allow_nan=False) + "\n")
