"""Groups of points drawn at random, and boxes that are a little off: seeded by the object's id.

Positives lie on the mask, negatives inside the box (a little widened) and off the mask, all of them at pixel centres
(SAM4MLLM, arXiv 2409.10542, prompt-point generation). This module knows no segmenter.
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
    """K groups of n points for one object: xy (K, n, 2) float32 in pixels, labels (n,) int64, positives first.

    Among its positives, and among its negatives, a group goes from left to right (then downwards): order means nothing
    to SAM, and one that is fixed leaves a model less to guess.
    """

    xy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.xy)

    def points(self, group: int) -> tuple[Point, ...]:
        """One group as points of a prompt."""
        return tuple(
            Point(float(x), float(y), int(label)) for (x, y), label in zip(self.xy[group], self.labels, strict=True)
        )


def seeded(seed: int, purpose: str, object_id: str) -> np.random.Generator:
    """A generator that depends on these three alone, so that purposes and objects draw independently of each other."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{object_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def draw_groups(
    mask: npt.NDArray[np.bool_],
    box: Box,
    rng: np.random.Generator,
    *,
    groups: int,
    positives: int,
    negatives: int,
    widen: float,
    ignored: npt.NDArray[np.bool_] | None = None,
) -> PointGroups:
    """Groups of `positives` points on the mask (H, W) bool and `negatives` points off it, near the box.

    The points of a group differ from each other, unless the mask has fewer pixels than `positives`: then they repeat.
    Where the widened box has too few pixels off the mask, negatives come from the whole image. None lies on
    pixels of `ignored` (H, W) bool, which count for nobody; the mask has none of them.

    Raises:
        DataError: an empty mask; a mask that leaves no place in the image for the negatives.
    """
    height, width = mask.shape
    # Column-major numbers of pixels, x * H + y: sorting them sorts points from left to right.
    on = np.flatnonzero(mask.T)
    free = ~mask if ignored is None else ~(mask | ignored)
    if on.size == 0:
        raise DataError("the mask is empty")
    off = np.flatnonzero(_near(mask.shape, box.widen(widen, (width, height))).T & free.T)
    if off.size < negatives:
        off = np.flatnonzero(free.T)
        if off.size < negatives:
            raise DataError(f"the mask leaves {off.size} pixels of the image; no place for {negatives} negative points")
    picked = np.concatenate([_draw(on, groups, positives, rng), _draw(off, groups, negatives, rng)], axis=1)
    xy = np.stack([picked // height, picked % height], axis=-1).astype(np.float32) + np.float32(0.5)
    labels = np.array([POSITIVE] * positives + [NEGATIVE] * negatives, dtype=np.int64)
    return PointGroups(xy, labels)


def jittered_boxes(
    box: Box, size_wh: tuple[int, int], rng: np.random.Generator, *, share: float, count: int
) -> npt.NDArray[np.float32]:
    """Boxes (count, 4) xyxy, in pixels, whose sides are each off by up to `share` of the box's width or height.

    The offsets are uniform and independent; the boxes end at the image's edge. A share below 0.5 keeps corners in
    order.
    """
    offsets = rng.uniform(-share, share, size=(count, 4)) * np.array([box.width, box.height] * 2)
    limit = np.array([*size_wh, *size_wh])
    return np.clip(np.array(box) + offsets, 0, limit).astype(np.float32)


def poisson_disk(rng: np.random.Generator, radius: float, most: int) -> npt.NDArray[np.float64]:
    """At most `most` points (N, 2) in the unit square, no two nearer than `radius`, by throwing darts.

    It ends when 30 darts for each point that is wanted have been thrown, so a square that is full earlier has fewer.
    """
    kept = np.empty((0, 2))
    for dart in rng.random((30 * most, 2)):
        if len(kept) == most:
            break
        if (((kept - dart) ** 2).sum(axis=1) >= radius**2).all():
            kept = np.vstack([kept, dart])
    return kept


def _near(shape: tuple[int, ...], box: Box) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) whose centres lie in the box."""
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    return ((rows >= box.y1) & (rows < box.y2))[:, None] & ((columns >= box.x1) & (columns < box.x2))[None, :]


def _draw(places: npt.NDArray[np.int64], groups: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` of `places` for each group, (groups, count) in rising order; distinct where there are enough.

    Robert Floyd's way to draw without repetition, for all groups at once: the j-th draw is from one more place than the
    last, and a place drawn already gives way to the new one.
    """
    if places.size < count:
        return np.sort(places[rng.integers(places.size, size=(groups, count))], axis=1)
    chosen = np.empty((groups, count), dtype=np.int64)
    for draw in range(count):
        newest = places.size - count + draw
        candidate = rng.integers(newest + 1, size=groups)
        taken = (chosen[:, :draw] == candidate[:, None]).any(axis=1)
        chosen[:, draw] = np.where(taken, newest, candidate)
    return np.sort(places[chosen], axis=1)
