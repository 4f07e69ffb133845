"""Saving of corrected answers: a line of a JSONL data set (docs/your-data.md), with a copy of the image beside it.

    DATA.jsonl, images/NAME.jpg

A line about the same image and phrase is replaced; all other lines of the file keep their bytes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam4mllm.app.limits import check_name
from sam4mllm.data.images import open_image
from sam4mllm.data.json_lines import dump_object
from sam4mllm.data.masks import encode, tight_box
from sam4mllm.data.readers.custom_record import record_of
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path, file_sha256

IMAGES = "images"
"""The folder of the images, beside the data set."""

# MPO is the JPEG of phones with a second image.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
}


class CorrectedData:
    """The JSONL data set of corrected answers.

    Args:
        file: The file; created with the first answer. Its folder must exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        # Several users may save at once.
        self._lock = threading.Lock()

    def save(
        self,
        image: Path,
        size_wh: tuple[int, int],
        phrase: str,
        masks: Sequence[npt.NDArray[np.bool_]],
        name: str | None = None,
    ) -> tuple[Path, int]:
        """Save an answer, and return the copy of the image and the number of lines that the data set has now.

        Args:
            image: The image file.
            size_wh: Its size, with the EXIF orientation applied.
            phrase: The phrase.
            masks: The masks (H, W) of its objects, each with a pixel; empty for "no object".
            name: The file name of the copy, without suffix; None for one made from the image's name and content.

        Raises:
            DataError: An invalid name, or that of another image; a file that is not an image.
            OSError: The file cannot be written.
        """
        with self._lock:
            copy = self._copy(image, name)
            line_id = f"{self.file.stem}/{copy.stem}/{phrase}"
            objects = []
            for number, mask in enumerate(masks):
                rle = encode(mask)
                box = tight_box(rle)
                if box is not None:
                    objects.append(MaskObject(f"{line_id}/{number}", rle, box))
            sample = Sample(line_id, copy, size_wh, phrase, tuple(objects))
            record = record_of(sample, self.file.parent)
            lines = [line for line in self._lines() if not _is_about(line, record)]
            lines.append(dump_object(record).encode())
            with atomic_path(self.file) as unfinished:
                unfinished.write_bytes(b"".join(lines))
            return copy, len(lines)

    def _lines(self) -> list[bytes]:
        """Return the lines of the file, each with its line end."""
        if not self.file.exists():
            return []
        lines = self.file.read_bytes().splitlines(keepends=True)
        return [line if line.endswith(b"\n") else line + b"\n" for line in lines]

    def _copy(self, image: Path, name: str | None) -> Path:
        """Copy an image beside the data set, unless it is there, and return the copy."""
        with open_image(image) as opened:
            suffix = _SUFFIXES.get(opened.format or "", f".{(opened.format or 'img').lower()}")
        digest = file_sha256(image)
        stem = default_name(image.name, digest) if name is None else check_name(name)
        copy = self.file.parent / IMAGES / f"{stem}{suffix}"
        if copy.is_symlink() or copy.exists():
            if copy.is_symlink() or file_sha256(copy) != digest:
                raise DataError(f"the data set has another image {copy.name!r}; give another name")
            return copy
        copy.parent.mkdir(exist_ok=True)
        with atomic_path(copy) as unfinished:
            unfinished.write_bytes(image.read_bytes())
        return copy


def default_name(file_name: str, digest: str) -> str:
    """Return a valid name for an image file: what is valid of its own name, and the beginning of its SHA-256.

    >>> default_name("../a photo.jpg", "0123456789abcdef")
    'a-photo-01234567'
    """
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(file_name).stem, flags=re.ASCII).strip("-")[:80]
    return check_name(f"{stem or 'image'}-{digest[:8]}")


def _is_about(line: bytes, record: dict[str, Any]) -> bool:
    """Return whether a line of the data set is about the image and the phrase of a record."""
    try:
        other = json.loads(line)
    except ValueError:
        return False
    return isinstance(other, dict) and all(other.get(key) == record[key] for key in ("image", "phrase"))
