"""Export predictions to the file formats of other programs."""

from __future__ import annotations

import os
from pathlib import Path

from sam4mllm.errors import ArgumentError
from sam4mllm.export.formats import FORMATS, LOCAL_FILES, ExportOptions, atomic_output, check_output
from sam4mllm.export.instances import ExportCounts, read_instances


def export_predictions(
    predictions: str | os.PathLike[str],
    to: str,
    output: str | os.PathLike[str],
    *,
    as_attribute: bool = False,
    min_score: float | None = None,
    url_prefix: str = LOCAL_FILES,
) -> ExportCounts:
    """Write the masks of a file of predictions in another format; the write is atomic.

    Args:
        predictions: The predictions.jsonl, by this program or any other.
        to: The format: coco, yolo, labelstudio, cvat, png or fiftyone.
        output: The file, or for all formats but coco a folder, which must be new or empty.
        as_attribute: Whether the phrase is an attribute of the category `object`; else it is the category.
        min_score: Objects with a lower score are left out.
        url_prefix: For labelstudio: the beginning of the images' URLs.

    Raises:
        ArgumentError: An unknown format.
        DataError: The output cannot be written.
        PredictionsError: The predictions cannot be read, or lack what an export needs; see `read_instances`.
    """
    if to not in FORMATS:
        raise ArgumentError("to", f"unknown format {to!r}; the formats are {', '.join(FORMATS)}")
    check_output(Path(output), FORMATS[to])
    images, counts = read_instances(Path(predictions), min_score)
    with atomic_output(Path(output), FORMATS[to]) as unfinished:
        FORMATS[to].write(images, unfinished, ExportOptions(as_attribute, url_prefix))
    return counts
