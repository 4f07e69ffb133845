"""Connected regions of small masks by flood filling, independent of the outlines that are tested with them."""

from __future__ import annotations

import numpy as np

_BY_SIDE = ((1, 0), (-1, 0), (0, 1), (0, -1))
_BY_CORNER = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def parts_of(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected parts of a mask (H, W)."""
    return _regions(mask, _BY_SIDE)


def holes_of(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of the background that the mask encloses."""
    around = _regions(np.pad(~mask, 1, constant_values=True), _BY_SIDE + _BY_CORNER)
    return [region[1:-1, 1:-1] for region in around if not region[0, 0]]


def _regions(mask: np.ndarray, steps: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region = np.zeros_like(mask)
        open_pixels = [left.pop()]
        while open_pixels:
            y, x = open_pixels.pop()
            region[y, x] = True
            for dy, dx in steps:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    open_pixels.append((y + dy, x + dx))
        regions.append(region)
    return regions
