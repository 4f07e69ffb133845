"""Point prompts against the annotated masks: the share of points on the right side, beside chance in the same boxes.

The figures are over the points of matched objects: predicted objects whose box has IoU > 0.5 with the box of an object
of the sentence, matched one to one. So they measure whether a model places points, apart from whether it finds the
object. `points_on` is the share of positive points on the mask of the matched object, `points_off` the share of
negative points off it. Chance is the share that points at uniformly random pixels would have: positives in the
predicted box, negatives in that box widened as in `targets.sampling`.

A point is at pixel (floor(x), floor(y)). Points on ignored pixels are left out; a point outside the image is off the
object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sam4mllm.evaluation.metrics import CORRECT_IOU, Mask, match_greedily
from sam4mllm.geometry import POSITIVE, Box, SamPrompt

NEGATIVE_MARGIN = 0.1
"""The share of the predicted box's sides by which it is widened on each side, for the chance of negative points."""


class ObjectPoints(NamedTuple):
    """The points of one matched object, without those on ignored pixels.

    `positives_on` and `negatives_off` count those on the right side of the mask; `on_chance` and `off_chance` are the
    probabilities of it for a uniformly random pixel of the box and of the widened box.
    """

    positives: int
    positives_on: int
    on_chance: float
    negatives: int
    negatives_off: int
    off_chance: float


@dataclass(frozen=True, slots=True)
class PointScores:
    """The figures of the points of a split, as fractions from 0 to 1; None where there are no such points.

    Attributes:
        points_on: The share of positive points on the mask of the matched object.
        points_on_chance: That share for random pixels of the same predicted boxes.
        points_off: The share of negative points off the mask of the matched object.
        points_off_chance: That share for random pixels of the same predicted boxes, widened.
        positive_points: The number of points that `points_on` is over.
        negative_points: The number of points that `points_off` is over.
        points_kept: The mean number of points per predicted object, matched or not; None if no object has a prompt.
    """

    points_on: float | None = None
    points_on_chance: float | None = None
    points_off: float | None = None
    points_off_chance: float | None = None
    positive_points: int = 0
    negative_points: int = 0
    points_kept: float | None = None


@dataclass(slots=True)
class PointTally:
    """The points of a split, collected answer by answer; the order of the answers does not change the figures."""

    matched: list[ObjectPoints] = field(default_factory=list)
    objects: int = 0
    points: int = 0

    def add(
        self,
        prompts: Sequence[SamPrompt | None],
        boxes: Sequence[Box],
        masks: Sequence[Mask],
        ignored: Mask | None = None,
    ) -> None:
        """Add one answer: its prompts, and the annotated objects of the sentence with their masks (H, W) bool."""
        given = [prompt for prompt in prompts if prompt is not None]
        self.objects += len(given)
        self.points += sum(len(prompt.points) for prompt in given)
        self.matched += matched_points(given, boxes, masks, ignored)

    def scores(self) -> PointScores:
        """Return the figures of all points that were added, pooled."""
        positives = sum(each.positives for each in self.matched)
        negatives = sum(each.negatives for each in self.matched)
        return PointScores(
            points_on=_ratio(sum(each.positives_on for each in self.matched), positives),
            points_on_chance=_ratio(math.fsum(each.positives * each.on_chance for each in self.matched), positives),
            points_off=_ratio(sum(each.negatives_off for each in self.matched), negatives),
            points_off_chance=_ratio(math.fsum(each.negatives * each.off_chance for each in self.matched), negatives),
            positive_points=positives,
            negative_points=negatives,
            points_kept=_ratio(self.points, self.objects),
        )


def matched_points(
    prompts: Sequence[SamPrompt], boxes: Sequence[Box], masks: Sequence[Mask], ignored: Mask | None = None
) -> list[ObjectPoints]:
    """Count the points of the matched objects of one answer.

    An object is left out if it has no points, or if its box holds no pixel (by its center) that is not ignored.

    Args:
        prompts: The prompt of each predicted object; one without a box matches none.
        boxes: The box of each annotated object.
        masks: Their masks (H, W) bool.
        ignored: (H, W) bool, the ignored pixels.
    """
    if not any(prompt.points for prompt in prompts):
        return []
    # All prompts with a box take part in the matching, since one without points may match an object best.
    pairs = [
        (prompt.box.iou(box), i, j)
        for i, prompt in enumerate(prompts)
        if prompt.box is not None
        for j, box in enumerate(boxes)
    ]
    matches = match_greedily(pairs, above=CORRECT_IOU)
    counted = [_object_points(prompts[i], masks[j], ignored) for i, j in sorted(matches.items())]
    return [each for each in counted if each is not None]


def share_on_mask(box: Box, mask: Mask, ignored: Mask | None = None) -> float | None:
    """Return the share of the box's pixels that are on the mask (H, W) bool: the chance of a uniformly random pixel.

    A pixel is in the box if its center is. Ignored pixels do not count; None if no other pixel is in the box.
    """
    region = _pixels(box, mask.shape)
    on = mask[region]
    if ignored is None:
        return _ratio(int(np.count_nonzero(on)), on.size)
    free = ~ignored[region]
    return _ratio(int(np.count_nonzero(on & free)), int(np.count_nonzero(free)))


def _object_points(prompt: SamPrompt, mask: Mask, ignored: Mask | None) -> ObjectPoints | None:
    height, width = mask.shape
    if prompt.box is None or not prompt.points:
        return None
    on_chance = share_on_mask(prompt.box, mask, ignored)
    chance_in_wide = share_on_mask(prompt.box.widen(NEGATIVE_MARGIN, (width, height)), mask, ignored)
    if on_chance is None or chance_in_wide is None:
        return None
    # The counts of points by (is positive, is on the mask).
    counts = {(positive, on): 0 for positive in (True, False) for on in (True, False)}
    for point in prompt.points:
        column, row = math.floor(point.x), math.floor(point.y)
        inside = 0 <= column < width and 0 <= row < height
        if inside and ignored is not None and ignored[row, column]:
            continue
        counts[point.label == POSITIVE, inside and bool(mask[row, column])] += 1
    return ObjectPoints(
        positives=counts[True, True] + counts[True, False],
        positives_on=counts[True, True],
        on_chance=on_chance,
        negatives=counts[False, True] + counts[False, False],
        negatives_off=counts[False, False],
        off_chance=1 - chance_in_wide,
    )


def pooled_share(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Return the share over the points of several data sets, given (share, number of points) of each; None without any.

    >>> pooled_share([(0.5, 2), (1.0, 6), (None, 0)])
    0.875
    """
    known = [(share, count) for share, count in parts if share is not None]
    total = sum(count for _, count in known)
    return sum(share * count for share, count in known) / total if total else None


def _pixels(box: Box, shape_hw: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of the pixels with centers in the box, as in `geometry.mask_of_box`."""
    rows, columns = (
        slice(*(min(max(math.ceil(edge - 0.5), 0), side) for edge in edges))
        for edges, side in zip(((box.y1, box.y2), (box.x1, box.x2)), shape_hw, strict=True)
    )
    return rows, columns


def _ratio(part: float, total: int) -> float | None:
    return part / total if total else None
