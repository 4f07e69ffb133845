"""Polygons on the pixel raster: filled, with their outline of one pixel, as ReasonSeg's masks are made.

The rule is OpenCV's for whole-numbered corners (fillPoly and polylines, modules/imgproc/src/drawing.cpp), so that
scores on ReasonSeg are over the same pixels as elsewhere; corners name pixels here, not places between them. Where
corners lie outside the image, pixels along such an edge may differ from OpenCV's. This module knows no labels and no
files.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def draw_polygon(points: npt.NDArray[np.int64], size_wh: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) bool of a closed polygon: its inside by the even-odd rule, and its outline.

    Args:
        points: (N, 2) corners x, y as whole pixels, N >= 1, within 2**24 of (0, 0); they may lie outside
            the image, and one or two of them draw a dot or a line.
        size_wh: width and height of the image in pixels.
    """
    mask = _inside(points, size_wh)
    for start, end in _edges(points):
        columns, rows = _line(start, end, size_wh)
        mask[rows, columns] = True
    return mask


def _edges(points: npt.NDArray[np.int64]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The edges of the closed polygon, each as its two corners (x, y)."""
    corners = [(int(x), int(y)) for x, y in points]
    return list(zip(corners, corners[1:] + corners[:1], strict=True))


def _inside(points: npt.NDArray[np.int64], size_wh: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The inside by the even-odd rule: between each pair of crossings of a row, both rounded to the nearest pixel."""
    width, height = size_wh
    # A crossing at column c flips every pixel from c on, so the running parity along a row is inside or outside.
    flips = np.zeros((height, width + 1), dtype=np.int64)
    for edge in _edges(points):
        (x1, y1), (x2, y2) = sorted(edge, key=lambda corner: corner[1])
        # An edge holds its upper end and not its lower one, so that a corner between two edges counts once.
        rows = np.arange(max(y1, 0), min(y2, height), dtype=np.int64)
        crossings = x1 + (2 * (x2 - x1) * (rows - y1) + (y2 - y1)) // (2 * max(y2 - y1, 1))
        np.add.at(flips, (rows, np.clip(crossings, 0, width)), 1)
    return np.cumsum(flips, axis=1)[:, :width] % 2 == 1


def _line(
    start: tuple[int, int], end: tuple[int, int], size_wh: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Columns and rows of Bresenham's line, cut to the image and drawn from its left end."""
    ends = _cut(start, end, size_wh)
    if ends is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    (x1, y1), (x2, y2) = sorted(ends, key=lambda corner: corner[0])
    across, down = x2 - x1, abs(y2 - y1)
    length, rise = max(across, down), min(across, down)
    steps = np.arange(length + 1, dtype=np.int64)
    # A step aside waits until the line is more than half a pixel off, so that ties stay.
    aside = -((length - 2 * rise * steps) // (2 * length)) if length else steps
    columns, rows = (steps, aside) if across >= down else (aside, steps)
    return x1 + columns, y1 + (rows if y2 >= y1 else -rows)


def _cut(
    start: tuple[int, int], end: tuple[int, int], size_wh: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The part of a line inside the image, its ends at whole pixels; None where it misses the image.

    An end that lies above or below is first moved along the line to the image's first or last row, then one that lies
    beside it to the first or last column, each time cutting fractions off: the order decides the pixels.
    """
    ends = [list(start), list(end)]
    for axis in (1, 0):
        last = size_wh[axis] - 1
        if max(ends[0][axis], ends[1][axis]) < 0 or min(ends[0][axis], ends[1][axis]) > last:
            return None
        for corner in ends:
            edge = min(max(corner[axis], 0), last)
            if edge != corner[axis]:
                run, rise = (ends[1][k] - ends[0][k] for k in (axis, 1 - axis))
                corner[1 - axis] += math.trunc((edge - corner[axis]) * rise / run)
                corner[axis] = edge
    return (ends[0][0], ends[0][1]), (ends[1][0], ends[1][1])
