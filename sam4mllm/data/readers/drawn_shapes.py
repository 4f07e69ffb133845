"""Shapes drawn in labeling programs, and the samples of an image's shapes: shared by their readers.

Shapes of one phrase and one group are the parts of one object, whose mask is their union. A rectangle is a box without
a mask; a rotated one has the box of its corners.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam4mllm.data.masks import Rle, decode, encode, from_segmentation
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

_ELLIPSE_POINTS = 72


@dataclass(frozen=True, slots=True)
class DrawnShape:
    """One shape: its mask at the image's size, or a box in pixels, and its group; None for a shape without a group."""

    rle: Rle | None
    box: Box | None = None
    group: str | None = None


def polygon(points_xy: Sequence[float], size_wh: tuple[int, int]) -> Rle:
    """Return the mask of a polygon x1, y1, x2, y2, ... in pixels.

    Raises:
        DataError: Fewer than three points, or points far outside the image.
    """
    try:
        return from_segmentation([list(points_xy)], size_wh[::-1])
    except ValueError as error:
        raise DataError(f"a polygon: {error}", "mask") from error


def ellipse(
    center_xy: tuple[float, float], radii_xy: tuple[float, float], degrees: float, size_wh: tuple[int, int]
) -> Rle:
    """Return the mask of an ellipse in pixels, rotated clockwise about its center, as a polygon of 72 points."""
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    offsets = np.stack([np.cos(angles) * radii_xy[0], np.sin(angles) * radii_xy[1]], axis=1)
    return polygon((np.asarray(center_xy) + _rotated(offsets, degrees)).reshape(-1).tolist(), size_wh)


def rectangle(box: Box, degrees: float, pivot_xy: tuple[float, float], size_wh: tuple[int, int]) -> Box:
    """Return the box of a rectangle in pixels that is rotated clockwise about a point, clipped to the image."""
    corners = np.array([(x, y) for x in (box.x1, box.x2) for y in (box.y1, box.y2)])
    turned = np.asarray(pivot_xy) + _rotated(corners - pivot_xy, degrees) if degrees else corners
    (x1, y1), (x2, y2) = turned.min(axis=0).tolist(), turned.max(axis=0).tolist()
    return Box(x1, y1, x2, y2).clip(size_wh) if degrees else Box(x1, y1, x2, y2)


def pasted(pixels: npt.NDArray[np.bool_], left_top: tuple[int, int], size_wh: tuple[int, int]) -> Rle:
    """Return the mask of an image whose part at `left_top` is `pixels` (H, W), bool.

    Raises:
        DataError: The part leaves the image.
    """
    left, top = left_top
    height, width = pixels.shape
    if min(left, top) < 0 or left + width > size_wh[0] or top + height > size_wh[1]:
        raise DataError(
            f"a mask of {(width, height)} pixels at {left_top} leaves the image of {size_wh} (width, height)", "mask"
        )
    mask = np.zeros(size_wh[::-1], dtype=bool)
    mask[top : top + height, left : left + width] = pixels
    return encode(mask)


def records_of_image(
    image: str, size_wh: tuple[int, int] | None, shapes: Mapping[str, Iterable[DrawnShape]], record_id: str
) -> list[dict[str, Any]]:
    """Return a record of custom data (`custom_record.py`) for each phrase of an image.

    Args:
        image: The path of the image from the folder of the images.
        size_wh: The size of the image; None if it is not known, and no phrase has a shape.
        shapes: The shapes of each phrase; none for a phrase without an object.
        record_id: The beginning of the ids.

    Raises:
        DataError: A phrase has masks and boxes.
    """
    records: list[dict[str, Any]] = []
    for number, (phrase, drawn) in enumerate(shapes.items()):
        record: dict[str, Any] = {"id": f"{record_id}/{number}", "image": image, "phrase": phrase}
        if size_wh is not None:
            record["size_wh"] = list(size_wh)
        if objects := _objects(drawn):
            masks = [shape.rle for shape in objects if shape.rle is not None]
            if masks and len(masks) < len(objects):
                raise DataError(
                    f"the phrase {phrase!r} has masks and rectangles; draw all of its objects in one of the two forms",
                    "mask",
                )
            record |= {"masks": masks} if masks else {"boxes": [list(shape.box or ()) for shape in objects]}
        records.append(record)
    return records


def _objects(shapes: Iterable[DrawnShape]) -> list[DrawnShape]:
    """Join the shapes of a group; those without a group are objects of their own."""
    alone: list[DrawnShape] = []
    groups: dict[str, DrawnShape] = {}
    for shape in shapes:
        if shape.group is None:
            alone.append(shape)
        else:
            groups[shape.group] = _union(groups[shape.group], shape) if shape.group in groups else shape
    return [*alone, *groups.values()]


def _union(shape: DrawnShape, other: DrawnShape) -> DrawnShape:
    if shape.rle is not None and other.rle is not None:
        return DrawnShape(encode(decode(shape.rle) | decode(other.rle)), group=shape.group)
    if shape.box is None or other.box is None:
        raise DataError(
            f"the group {shape.group} has a mask and a rectangle; draw its parts in one of the two forms", "mask"
        )
    first, second = shape.box, other.box
    box = Box(min(first.x1, second.x1), min(first.y1, second.y1), max(first.x2, second.x2), max(first.y2, second.y2))
    return DrawnShape(None, box, shape.group)


def _rotated(offsets: npt.NDArray[np.float64], degrees: float) -> npt.NDArray[np.float64]:
    """Rotate offsets (N, 2) clockwise, since y points downwards."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return offsets @ np.array([[cosine, sine], [-sine, cosine]])
