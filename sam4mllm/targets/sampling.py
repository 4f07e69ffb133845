"""Sample point groups (point prompts on and around an object) and jittered boxes, with a seed per object.

Positive points are on the mask, negative points off the mask and inside the slightly extended box; all are at pixel
centers. Source: prompt-point generation (PPG) in SAM4MLLM, arXiv 2409.10542.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam4mllm.errors import DataError
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point


@dataclass(frozen=True, slots=True)
class PointGroups:
    """K groups of n points for one object.

    The positives of a group, and its negatives, are sorted from left to right, then downwards. SAM ignores the order; a
    fixed one makes the answer easier to learn.

    Attributes:
        xy: (K, n, 2) float32, in pixels of the image.
        labels: (n,) int64, positives (1) before negatives (0); the same for all groups.
    """

    xy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.xy)

    def points(self, group: int) -> tuple[Point, ...]:
        """Return one group as the points of a prompt."""
        return tuple(
            Point(float(x), float(y), int(label)) for (x, y), label in zip(self.xy[group], self.labels, strict=True)
        )


def seeded_rng(seed: int, purpose: str, key: str) -> np.random.Generator:
    """Return a generator that depends only on the arguments, so that objects and purposes are sampled independently.

    Args:
        seed: The recipe's seed.
        purpose: What is sampled.
        key: What it is sampled for: an object's hash (`objects.object_hash`), or another text that identifies it.
    """
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def draw_groups(
    mask: npt.NDArray[np.bool_],
    box: Box,
    rng: np.random.Generator,
    *,
    groups: int,
    positives: int,
    negatives: int,
    margin: float,
    ignored: npt.NDArray[np.bool_] | None = None,
) -> PointGroups:
    """Sample groups of points on the mask and off it, uniformly over pixels.

    The points of a group are distinct, unless the mask has fewer pixels than `positives`.

    Args:
        mask: (H, W) bool, without ignored pixels.
        box: The object's box, in pixels.
        rng: See `seeded_rng`.
        groups: The number of groups.
        positives: Points on the mask per group.
        negatives: Points off the mask per group.
        margin: Negatives are inside the box extended by this share of its width and height on each side; if fewer than
            `negatives` pixels of it are off the mask, they are anywhere in the image.
        ignored: (H, W) bool, pixels without a label, which get no points.

    Raises:
        DataError: The mask is empty, or leaves fewer than `negatives` pixels in the image.
    """
    height, width = mask.shape
    # Column-major pixel indices, x * H + y: sorting them sorts points from left to right.
    on = np.flatnonzero(mask.T)
    free = ~mask if ignored is None else ~(mask | ignored)
    if on.size == 0:
        raise DataError("the mask is empty")
    off = np.flatnonzero(_pixels_in_box(mask.shape, box.widen(margin, (width, height))).T & free.T)
    if off.size < negatives:
        off = np.flatnonzero(free.T)
        if off.size < negatives:
            raise DataError(f"the mask leaves {off.size} pixels of the image; no place for {negatives} negative points")
    pixels = np.concatenate([_draw(on, groups, positives, rng), _draw(off, groups, negatives, rng)], axis=1)
    xy = np.stack([pixels // height, pixels % height], axis=-1).astype(np.float32) + np.float32(0.5)
    labels = np.array([POSITIVE] * positives + [NEGATIVE] * negatives, dtype=np.int64)
    return PointGroups(xy, labels)


def jittered_boxes(
    box: Box, size_wh: tuple[int, int], rng: np.random.Generator, *, share: float, count: int
) -> npt.NDArray[np.float32]:
    """Sample boxes (count, 4) float32 xyxy in pixels by moving each side of `box`.

    The offsets are uniform, independent and at most `share` of the box's width or height; below 0.5 corners keep their
    order. Boxes are clipped to the image.
    """
    offsets = rng.uniform(-share, share, size=(count, 4)) * np.array([box.width, box.height] * 2)
    limit = np.array([*size_wh, *size_wh])
    return np.clip(np.array(box) + offsets, 0, limit).astype(np.float32)


def poisson_disk(rng: np.random.Generator, radius: float, limit: int) -> npt.NDArray[np.float64]:
    """Sample up to `limit` points (N, 2) in the unit square with pairwise distances of at least `radius`.

    Candidates are rejected if they are too close to an accepted point (dart throwing). After 30 candidates per wanted
    point the function returns what it has.
    """
    accepted = np.empty((0, 2))
    for candidate in rng.random((30 * limit, 2)):
        if len(accepted) == limit:
            break
        if (((accepted - candidate) ** 2).sum(axis=1) >= radius**2).all():
            accepted = np.vstack([accepted, candidate])
    return accepted


def _pixels_in_box(shape: tuple[int, ...], box: Box) -> npt.NDArray[np.bool_]:
    """Return a mask (H, W) of the pixels with centers inside the box."""
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    return ((rows >= box.y1) & (rows < box.y2))[:, None] & ((columns >= box.x1) & (columns < box.x2))[None, :]


def _draw(pixels: npt.NDArray[np.int64], groups: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sample `count` of `pixels` for each group: (groups, count), sorted; distinct if there are enough pixels.

    Sampling without replacement is Robert Floyd's algorithm, for all groups at once: draw j is among the first
    n - count + j + 1 pixels, and is replaced by the last of these if it was drawn before.
    """
    if pixels.size < count:
        return np.sort(pixels[rng.integers(pixels.size, size=(groups, count))], axis=1)
    chosen = np.empty((groups, count), dtype=np.int64)
    for draw in range(count):
        last = pixels.size - count + draw
        candidate = rng.integers(last + 1, size=groups)
        is_drawn = (chosen[:, :draw] == candidate[:, None]).any(axis=1)
        chosen[:, draw] = np.where(is_drawn, last, candidate)
    return np.sort(pixels[chosen], axis=1)
