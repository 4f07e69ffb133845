"""Bounding boxes, points, SAM prompts and coordinate grids: the only module that scales or rounds coordinates.

Every coordinate is continuous, x to the right and y downwards, in pixels of the original image: pixel (column c,
row r) covers [c, c + 1) x [r, r + 1) and its center is (c + 0.5, r + 0.5). A box is (x1, y1, x2, y2) with x2 and y2
exclusive, so COCO's (x, y, w, h) is (x, y, x + w, y + h) and a mask of one pixel has a box of area 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sam4mllm.errors import DataError

POSITIVE = 1
NEGATIVE = 0

# Qwen's image processors reject images with a larger ratio of the sides.
_MAX_ASPECT_RATIO = 200


class Box(NamedTuple):
    """A bounding box (x1, y1, x2, y2) in pixels of the original image, x2 and y2 exclusive."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        """The width in pixels."""
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        """The height in pixels."""
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        """The area in square pixels; 0 for a box without extent."""
        return max(self.width, 0.0) * max(self.height, 0.0)

    def iou(self, other: Box) -> float:
        """Return the intersection over union with `other`, in [0, 1]; no pixel is added to a side."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        intersection = max(width, 0.0) * max(height, 0.0)
        union = self.area + other.area - intersection
        return intersection / union if union > 0 else 0.0

    def clip(self, size_wh: tuple[int, int]) -> Box:
        """Return the part of the box inside an image of `size_wh` pixels."""
        width, height = size_wh
        return Box(
            min(max(self.x1, 0.0), width),
            min(max(self.y1, 0.0), height),
            min(max(self.x2, 0.0), width),
            min(max(self.y2, 0.0), height),
        )

    def to_shares(self, size_wh: tuple[int, int]) -> Box:
        """Return the part of the box inside an image of `size_wh` pixels, in shares (0 to 1) of its width and height.

        >>> Box(-5, 10, 50, 25).to_shares((100, 50))
        Box(x1=0.0, y1=0.2, x2=0.5, y2=0.5)
        """
        width, height = size_wh
        inside = self.clip(size_wh)
        return Box(inside.x1 / width, inside.y1 / height, inside.x2 / width, inside.y2 / height)

    def from_shares(self, size_wh: tuple[int, int]) -> Box:
        """Return a box in shares of an image's width and height in pixels of the image, of `size_wh` pixels."""
        width, height = size_wh
        return Box(self.x1 * width, self.y1 * height, self.x2 * width, self.y2 * height)

    def widen(self, share: float, size_wh: tuple[int, int]) -> Box:
        """Return the box enlarged on each side by `share` of its width and height, clipped to the image."""
        dx, dy = self.width * share, self.height * share
        return Box(self.x1 - dx, self.y1 - dy, self.x2 + dx, self.y2 + dy).clip(size_wh)


class Point(NamedTuple):
    """A point prompt in pixels of the original image; `label` is POSITIVE (on the object) or NEGATIVE (off it)."""

    x: float
    y: float
    label: int


@dataclass(frozen=True, slots=True)
class SamPrompt:
    """SAM's prompt for one object: a box, points, or both, in pixels of the original image.

    Raises:
        ValueError: Neither box nor points, a coordinate that is not finite, a box whose corners are out of order, or a
            label that is neither 1 nor 0.
    """

    box: Box | None
    points: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if self.box is None and not self.points:
            raise ValueError("a SAM prompt needs a box or at least one point; got neither")
        if self.box is not None:
            if not all(math.isfinite(value) for value in self.box):
                raise ValueError(f"box coordinates must be finite; got {tuple(self.box)}")
            if self.box.x1 > self.box.x2 or self.box.y1 > self.box.y2:
                raise ValueError(f"a box is (x1 <= x2, y1 <= y2); got {tuple(self.box)}")
        for point in self.points:
            if not (math.isfinite(point.x) and math.isfinite(point.y)):
                raise ValueError(f"point coordinates must be finite; got {tuple(point)}")
            if point.label not in (POSITIVE, NEGATIVE):
                raise ValueError(f"a point label is 1 (positive) or 0 (negative); got {point.label}")

    @property
    def positives(self) -> tuple[Point, ...]:
        """The points on the object, in their order."""
        return tuple(point for point in self.points if point.label == POSITIVE)

    @property
    def negatives(self) -> tuple[Point, ...]:
        """The points off the object, in their order."""
        return tuple(point for point in self.points if point.label == NEGATIVE)


@dataclass(frozen=True, slots=True)
class Grid:
    """The integer coordinates in a model's text: `bins_wh` bins on the x and the y axis of the image.

    A bin is half open, [k, k + 1) * size / bins. `to_bins` returns the bin that a coordinate is in and `to_pixels` the
    center of a bin, so that `to_bins(to_pixels(k)) == k` for every bin and a coordinate moves by at most half a bin. A
    coordinate on the far edge of the image belongs to the last bin.

    >>> grid = Grid((1000, 1000))
    >>> grid.to_bins(320.0, 239.9, size_wh=(640, 480))
    (500, 499)
    >>> grid.to_pixels(500, 499, size_wh=(640, 480))
    (320.32, 239.76)
    """

    bins_wh: tuple[int, int] = (1000, 1000)

    def __post_init__(self) -> None:
        if min(self.bins_wh) < 1:
            raise ValueError(f"a grid has at least one bin on each axis; got {self.bins_wh}")

    def to_bins(self, x: float, y: float, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Return the bin (column, row) of a point in pixels; points outside the image get the nearest bin."""
        return tuple(  # type: ignore[return-value]
            min(max(math.floor(value * bins / size), 0), bins - 1)
            for value, bins, size in zip((x, y), self.bins_wh, size_wh, strict=True)
        )

    def to_pixels(self, column: int, row: int, size_wh: tuple[int, int]) -> tuple[float, float]:
        """Return the center (x, y), in pixels, of the bin (column, row)."""
        return tuple(  # type: ignore[return-value]
            (index + 0.5) * size / bins for index, bins, size in zip((column, row), self.bins_wh, size_wh, strict=True)
        )

    def of_image(self, size_wh: tuple[int, int]) -> Grid:
        """Return this grid, which is the same for images of every size."""
        return self


@dataclass(frozen=True, slots=True)
class ResizedGrid:
    """The rule for a grid whose bins are the pixels of the resized image that the model sees.

    Both sides become multiples of `multiple`, the area is from `min_pixels` to `max_pixels`, and the aspect ratio is
    kept as far as that allows. It is `smart_resize` of Qwen's image processors (image_processing_qwen2_vl.py in
    transformers).

    Raises:
        ValueError: Bounds out of order, or a maximum below one multiple on each axis.
    """

    multiple: int
    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        if self.multiple < 1 or not self.multiple**2 <= self.max_pixels >= self.min_pixels >= 1:
            raise ValueError(
                "a resized image has 1 <= min_pixels <= max_pixels and room for one multiple on each axis; got "
                f"multiple={self.multiple}, min_pixels={self.min_pixels}, max_pixels={self.max_pixels}"
            )

    def of_image(self, size_wh: tuple[int, int]) -> Grid:
        """Return the grid of an image of `size_wh` pixels.

        Raises:
            DataError: One side is more than 200 times the other, which the image processors reject.
        """
        if max(size_wh) > _MAX_ASPECT_RATIO * min(size_wh):
            raise DataError(
                f"an image of {size_wh[0]} x {size_wh[1]} pixels: the model takes images whose one side is at most "
                f"{_MAX_ASPECT_RATIO} times the other; crop it"
            )
        bins_wh = tuple(round(side / self.multiple) * self.multiple for side in size_wh)
        if bins_wh[0] * bins_wh[1] > self.max_pixels:
            shrink = math.sqrt(size_wh[0] * size_wh[1] / self.max_pixels)
            bins_wh = tuple(
                max(self.multiple, math.floor(side / shrink / self.multiple) * self.multiple) for side in size_wh
            )
        elif bins_wh[0] * bins_wh[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (size_wh[0] * size_wh[1]))
            bins_wh = tuple(math.ceil(side * grow / self.multiple) * self.multiple for side in size_wh)
        return Grid((bins_wh[0], bins_wh[1]))


Frame: TypeAlias = Grid | ResizedGrid
"""A coordinate frame: its `of_image` returns the grid for an image's size."""


def box_of_mask(mask: npt.NDArray[np.bool_]) -> Box | None:
    """Return the tight box of a mask (H, W) bool; None for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def mask_of_box(box: Box, size_wh: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) bool of the pixels whose centers are in the box, for an image of `size_wh` pixels."""
    width, height = size_wh
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    across = (columns >= box.x1) & (columns < box.x2)
    down = (rows >= box.y1) & (rows < box.y2)
    return down[:, None] & across[None, :]
