"""ReasonSeg on disk: ReasonSeg/{train,val,test}/X.jpg with X.json -> samples, drawn as LISA draws them.

A file holds the texts that mean its target and the shapes that make it up. Training uses every text; validation and
test ask only the first, as LISA does (its utils/dataset.py). This module knows nothing about models or scores.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam4mllm.data.drawing import draw_polygon
from sam4mllm.data.fields import is_number, read_json, require_field, shorten
from sam4mllm.data.image_header import known_size_wh
from sam4mllm.data.masks import encode
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import box_of_mask

TARGET = 1
IGNORED = 255


def read(
    row: DatasetRow, *, root: Path, split: str, images: Path | None = None, limit: int | None = None
) -> list[Sample]:
    """The queries of one split, in the order of the file names; ids are `reasonseg/{split}/{stem}/{index of the text}`.

    Args:
        root: the folder that holds `ReasonSeg`.
        split: the folder in it: `train`, `val` or `test`.
        images: the folder that holds the images, where they do not lie beside the JSON files.
        limit: at most so many samples, from the beginning.

    Raises:
        DataError: no such split; an image that is missing or none (its size is the masks' size); a file that is no
            ReasonSeg annotation.
    """
    folder = row.folder_in(root) / split
    files = sorted(folder.glob("*.json"), key=lambda path: path.name)
    if not files:
        found = sorted(path.name for path in (row.folder_in(root)).glob("*") if path.is_dir())
        raise DataError(
            f"{folder}: no such split, or no JSON file in it; {row.folder_in(root)} has: {', '.join(found) or 'none'}"
        )
    samples: list[Sample] = []
    for path in files:
        content = read_json(path, "a ReasonSeg annotation", fallback_encoding="cp1252")
        texts = require_field(content, "text", list, str(path))
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: text is a list of one text or more; found {shorten(texts)}")
        image = (images if images is not None else folder) / f"{path.stem}.jpg"
        size_wh = known_size_wh(image)
        if size_wh is None:
            raise DataError(f"{image}: no such image, or none that can be read; {path} needs it for its size")
        marks = draw_marks(require_field(content, "shapes", list, str(path)), size_wh, str(path))
        mask, ignored = marks == TARGET, marks == IGNORED
        box = box_of_mask(mask)
        objects = () if box is None else (MaskObject(f"reasonseg/{split}/{path.stem}", encode(mask), box),)
        ignore = encode(ignored) if ignored.any() else None
        for index, text in enumerate(texts if split == "train" else texts[:1]):
            samples.append(Sample(f"reasonseg/{split}/{path.stem}/{index}", image, size_wh, text, objects, ignore))
            if len(samples) == limit:
                return samples
    return samples


def splits(row: DatasetRow, *, root: Path, images: Path | None = None) -> list[str]:
    """Return the names of the splits that are there."""
    return list(images_by_split(row, root=root))


def images_by_split(row: DatasetRow, *, root: Path, images: Path | None = None) -> dict[str, list[Path]]:
    """Return the images of every split that is there; arguments as in `read`."""
    return {
        split: [(images or row.folder_in(root) / split) / f"{path.stem}.jpg" for path in files]
        for split in ("train", "val", "test")
        if (files := sorted((row.folder_in(root) / split).glob("*.json")))
    }


def draw_marks(shapes: list[Any], size_wh: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    """The marks (H, W) uint8 of an image: 1 on the target, 255 where pixels count for nobody, 0 elsewhere.

    Shapes labelled `flag` are left out; the larger are drawn first and later ones over them; of two with equal area the
    one named first in the file comes out on top. A label that contains `ignore` marks 255, any other 1.

    Raises:
        DataError: a shape without label or points, or points that are no finite pairs.
    """
    width, height = size_wh
    drawn = []
    for index, shape in enumerate(shapes):
        place = f"{where}, shape {index}"
        label = require_field(shape, "label", str, place).lower()
        if label != "flag":
            mask = draw_polygon(_points(require_field(shape, "points", list, place), place), size_wh)
            drawn.append((int(mask.sum()), index, IGNORED if "ignore" in label else TARGET, mask))
    marks = np.zeros((height, width), dtype=np.uint8)
    for _, _, mark, mask in sorted(drawn, key=lambda entry: entry[:2], reverse=True):
        marks[mask] = mark
    return marks


def _points(points: list[Any], place: str) -> npt.NDArray[np.int64]:
    """The points (N, 2), x and y in pixels, truncated towards zero to whole numbers."""
    for point in points:
        if (
            not isinstance(point, list)
            or len(point) != 2
            or not all(map(is_number, point))
            or max(map(abs, point)) >= 2**24
        ):
            raise DataError(f"{place}: a point is [x, y] in pixels; found {shorten(point)}")
    if not points:
        raise DataError(f"{place}: a shape without points")
    return np.array([[math.trunc(x), math.trunc(y)] for x, y in points], dtype=np.int64)
