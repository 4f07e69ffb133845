"""Conversion of a mask to polygons through pixel centers, for formats that hold polygons (ReasonSeg).

Polygons that are drawn with their outline, as ReasonSeg's reader does, reproduce the mask. A hole is connected to the
outer outline by a cut, which the polygon follows in both directions; where the cut crosses pixels outside the mask,
those few are drawn too. OpenCV's findContours is not used: it joins parts that touch by a corner, has no cuts to holes,
and starts elsewhere, so generated data sets would differ from earlier ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Vertex = tuple[int, int]
# Directions of a walk along pixel edges with the mask on its right: east, south, west, north as (dx, dy), and for each
# direction the offset from the walk's corner to the pixel on its right.
_STEPS: tuple[_Vertex, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
_RIGHT: tuple[_Vertex, ...] = ((0, 0), (-1, 0), (-1, -1), (0, -1))


def polygons_of(mask: npt.NDArray[np.bool_]) -> list[list[list[int]]]:
    """Return a polygon for each 4-connected part of a mask (H, W), bool: a list of [x, y] in whole pixels."""
    walks = _walks(mask)
    parts = [walk for walk in walks if _area(walk) > 0]
    polygons = [_pixels_beside(walk) for walk in parts]
    for walk in walks:
        if _area(walk) < 0:
            hole = _pixels_beside(walk)
            # A part may be located in the hole of another: a hole belongs to the smallest part around it.
            around = [index for index, part in enumerate(parts) if _encloses(part, hole[0])]
            index = min(around, key=lambda index: _area(parts[index]))
            polygons[index] = _cut_to(polygons[index], hole)
    return [[[x, y] for x, y in polygon] for polygon in polygons]


def _cut_to(polygon: list[_Vertex], hole: list[_Vertex]) -> list[_Vertex]:
    """Return the polygon with a cut to the hole, the hole's outline, and the cut back, where the two are nearest."""
    _, at, entry = min(
        ((x - hx) ** 2 + (y - hy) ** 2, at, entry)
        for at, (x, y) in enumerate(polygon)
        for entry, (hx, hy) in enumerate(hole)
    )
    return [*polygon[: at + 1], *hole[entry:], *hole[: entry + 1], *polygon[at:]]


def _walks(mask: npt.NDArray[np.bool_]) -> list[list[tuple[_Vertex, int]]]:
    """Return the closed walks along the mask's edges, each step as (start corner, direction)."""
    inside = np.pad(mask, 1)

    def is_inside(corner: _Vertex, offset: _Vertex) -> bool:
        return bool(inside[corner[1] + offset[1] + 1, corner[0] + offset[0] + 1])

    rows, columns = np.nonzero(inside[1:, 1:] & ~inside[:-1, 1:])
    starts = {(int(column), int(row)) for row, column in zip(rows, columns, strict=True)}
    walks = []
    while starts:
        start = min(starts)
        corner, direction = start, 0
        walk: list[tuple[_Vertex, int]] = []
        while not walk or (corner, direction) != (start, 0):
            walk.append((corner, direction))
            if direction == 0:
                starts.discard(corner)
            corner = (corner[0] + _STEPS[direction][0], corner[1] + _STEPS[direction][1])
            # Turn right if the pixel ahead on the right is outside, left if the one ahead on the left is inside.
            ahead_right = is_inside(corner, _RIGHT[direction])
            ahead_left = is_inside(corner, _RIGHT[(direction - 1) % 4])
            if not ahead_right:
                direction = (direction + 1) % 4
            elif ahead_left:
                direction = (direction - 1) % 4
        walks.append(walk)
    return walks


def _area(walk: list[tuple[_Vertex, int]]) -> int:
    """Return twice the number of enclosed pixels; negative around a hole (anticlockwise, y downwards)."""
    return sum(x * _STEPS[direction][1] - y * _STEPS[direction][0] for (x, y), direction in walk)


def _encloses(walk: list[tuple[_Vertex, int]], pixel: _Vertex) -> bool:
    """Return whether the walk encloses the pixel: it then crosses its row an odd number of times to the left of it."""
    # A step south (1) from (x, y) is beside row y, a step north (3) beside row y - 1.
    rows = [y - (direction == 3) for (x, y), direction in walk if direction in (1, 3) and x <= pixel[0]]
    return rows.count(pixel[1]) % 2 == 1


def _pixels_beside(walk: list[tuple[_Vertex, int]]) -> list[_Vertex]:
    """Return the mask's pixels along the walk, in its order; of straight runs only the ends."""
    pixels: list[_Vertex] = []
    for (x, y), direction in walk:
        pixel = (x + _RIGHT[direction][0], y + _RIGHT[direction][1])
        if not pixels or pixel != pixels[-1]:
            pixels.append(pixel)
    if len(pixels) > 1 and pixels[0] == pixels[-1]:
        pixels.pop()
    count = len(pixels)
    kept = []
    for index in range(count):
        (ax, ay), (bx, by), (cx, cy) = pixels[index - 1], pixels[index], pixels[(index + 1) % count]
        if count < 3 or (bx - ax, by - ay) != (cx - bx, cy - by):
            kept.append((bx, by))
    return kept
