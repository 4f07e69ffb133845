"""Masks as COCO's run lengths: polygons and run lengths in, bool arrays out, and back.

A mask that comes as several polygons is their OR; summing them would count overlaps twice and lose them at 2 == 1.
Run lengths that come from a file are checked here first: pycocotools reads beyond the end of counts that are cut short.
This module knows no files: its errors say what is wrong, and the reader that called says where.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from sam4mllm.data.fields import is_number

# No coordinate is farther away than so many times the image's longer side: pycocotools walks along each edge pixel by
# pixel, in memory, and does not check that it has it.
_FARTHEST = 10


class Rle(TypedDict):
    """COCO's compressed run lengths: `size` [H, W], `counts` ASCII text, column-major."""

    size: list[int]
    counts: str


def encode(mask: npt.NDArray[np.bool_]) -> Rle:
    """Run lengths of a mask (H, W) bool."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle) -> npt.NDArray[np.bool_]:
    """The mask (H, W), bool, of run lengths."""
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def area(rle: Rle) -> int:
    """Pixels of the mask."""
    return int(coco.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))


def from_segmentation(segmentation: object, size_hw: tuple[int, int]) -> Rle:
    """Run lengths of COCO's `segmentation` of an image of `size_hw` (H, W) pixels.

    It is a list of polygons [x1, y1, x2, y2, ...] in pixels, whose OR is the mask, or run lengths {"size", "counts"}
    with counts compressed (text) or not (a list of whole numbers).

    Raises:
        ValueError: none of these; run lengths of another size than the image's; a polygon of fewer than three points,
            or far outside the image.
    """
    height, width = size_hw
    if isinstance(segmentation, dict):
        rle = check_rle(segmentation)
        if tuple(rle["size"]) != (height, width):
            raise ValueError(f"the mask is {tuple(rle['size'])} (H, W), its image is {(height, width)}")
        return rle
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"a segmentation is a list of polygons or run lengths; got {_short(segmentation)}")
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(is_number(value) for value in polygon):
            raise ValueError(f"a polygon is a list of finite numbers; got {_short(polygon)}")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has three points (six numbers) or more; got {len(polygon)} numbers")
        if max(map(abs, polygon)) > _FARTHEST * max(size_hw):
            raise ValueError(
                f"a polygon is in pixels of its image, which is {(width, height)} (width, height); "
                f"got {max(polygon, key=abs):g}, which is far outside"
            )
    merged = coco.merge(coco.frPyObjects(segmentation, height, width))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def check_rle(value: object) -> Rle:
    """Run lengths as JSON holds them, checked: they fill their size exactly. Uncompressed counts come back compressed.

    Raises:
        ValueError: no object with `size` [H, W] and `counts`; counts that are not run lengths or do not fill the size.
    """
    if not isinstance(value, dict) or "size" not in value or "counts" not in value:
        raise ValueError(f'run lengths are {{"size": [H, W], "counts": text}}; got {_short(value)}')
    size, counts = value["size"], value["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(_is_whole(side) and side > 0 for side in size):
        raise ValueError(f"the size of run lengths is [H, W], whole and positive; got {_short(size)}")
    if size[0] * size[1] >= 1 << 32:
        raise ValueError(f"COCO's run lengths hold fewer than 2^32 pixels; got {_short(size)}")
    if isinstance(counts, str):
        runs = _runs_of_counts(counts)
    elif isinstance(counts, list) and all(_is_whole(run) for run in counts):
        runs = counts
    else:
        raise ValueError(f"counts are text or a list of whole numbers; got {_short(counts)}")
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"counts must fill {size[0]} x {size[1]} pixels with runs of 0 or more; they do not")
    if not isinstance(counts, str):
        counts = coco.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode("ascii")
    return Rle(size=list(size), counts=counts)


def _runs_of_counts(counts: str) -> list[int]:
    """The runs of COCO's compressed counts.

    A character holds five bits and a sixth for "more follows"; from the fourth run on, a value is the difference to
    the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"counts are not COCO's compressed text: {_short(counts)}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(f"counts are cut short: {_short(counts)}")
    return runs


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    """The value as an error shows it: its start is enough to find it again."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
