"""Where subcommands write: JSON records, summaries on standard error, and checks of output files before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_write_text

if TYPE_CHECKING:
    from sam4mllm.pipeline.batch import BatchSummary

STDOUT = "-"
"""The value of `--json` that stands for standard output; then nothing else is printed there."""


def print_summary(summary: BatchSummary) -> None:
    """Print the counts of a batch run on standard error, because standard output may be read by a program."""
    cut_off = f" ({summary.cut_off} cut off)" if summary.cut_off else ""
    reasons = '; the field "error" of their lines states the reason' if summary.error else ""
    print(
        f"{summary.total} predictions in {summary.predictions}: {summary.ok} ok, {summary.no_object} no object, "
        f"{summary.malformed} malformed{cut_off}, {summary.error} errors{reasons}",
        file=sys.stderr,
    )


def write_json(record: dict[str, Any], file: str | None) -> None:
    """Write the record as JSON to `file` (atomically), to standard output for "-", or nowhere for None.

    Raises:
        DataError: The file cannot be written.
    """
    if file is None:
        return
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if file == STDOUT:
        sys.stdout.write(text)
        return
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            # A pipe or a device.
            path.write_text(text, encoding="utf-8")
        else:
            atomic_write_text(path, text)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from error


def check_image_files(*files: Path | None) -> None:
    """Check that the suffixes of `files` are those of image formats; None is skipped.

    Raises:
        DataError: A suffix is not that of an image format.
    """
    from PIL import Image

    writable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    for file in files:
        if file is None:
            continue
        if file.suffix.lower() not in writable:
            raise DataError(f"{file}: {file.suffix or 'no suffix'} is not an image format; use .png or .jpg")
