"""Overlaps of masks and the figures made of them. Pure arrays: this module knows no files, no data set and no protocol.

A sentence adds its intersection I = |P and G| and union U = |P or G|, in pixels at the original image's size, to sums
that are whole numbers, and its IoU to a mean that is summed exactly, so a figure depends neither on the order of the
sentences nor on how they were batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

RIGHT_ABOVE = 0.5
"""The IoU above which a mask, or a box, counts as right."""


class SentenceScore(NamedTuple):
    """What one sentence adds to the figures, after its protocol has had its say.

    `intersection` and `union` are pixels for the sums of cIoU; `iou` is its share in gIoU and Pr@; `targeted` says
    whether the truth has a pixel, `answered` whether the answer named a target.
    """

    intersection: int
    union: int
    iou: float
    targeted: bool
    answered: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """Intersection and union of two masks, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 for two empty masks, which a protocol may see otherwise."""
        return self.intersection / self.union if self.union else 0.0


def overlap(predicted: Mask, truth: Mask) -> Overlap:
    """Intersection and union of two masks (H, W), bool.

    Raises:
        ValueError: masks of different shapes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one image have one shape; got {predicted.shape} and {truth.shape} (H, W)")
    both = int(np.count_nonzero(predicted & truth))
    return Overlap(both, int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth)) - both)


def union_of(masks: Sequence[Mask], size_wh: tuple[int, int]) -> Mask:
    """The pixels (H, W), bool, of any of the masks (H, W); none for no mask."""
    union: Mask = np.zeros(size_wh[::-1], dtype=bool)
    for mask in masks:
        union |= mask
    return union


def right_objects(predicted: Sequence[Mask], truth: Sequence[Mask], ignored: Mask | None = None) -> tuple[bool, ...]:
    """Which of the predicted masks (H, W) bool have IoU > 0.5 with a true one that no other predicted one has taken.

    The pairs are taken by IoU, the best first; among equals the earlier mask. `ignored` pixels count for nobody.
    """
    if ignored is not None:
        predicted, truth = [mask & ~ignored for mask in predicted], [mask & ~ignored for mask in truth]
    pairs = [(overlap(mask, other).iou, i, j) for i, mask in enumerate(predicted) for j, other in enumerate(truth)]
    taken: dict[int, int] = {}
    for _, i, j in sorted((pair for pair in pairs if pair[0] > RIGHT_ABOVE), key=lambda pair: (-pair[0], *pair[1:])):
        if i not in taken and j not in taken.values():
            taken[i] = j
    return tuple(i in taken for i in range(len(predicted)))


def cumulative_iou(sentences: Iterable[SentenceScore]) -> float | None:
    """cIoU: the sum of I over the sum of U; None where no sentence added a pixel."""
    intersection = union = 0
    for sentence in sentences:
        intersection += sentence.intersection
        union += sentence.union
    return intersection / union if union else None


def mean_iou(sentences: Sequence[SentenceScore]) -> float | None:
    """gIoU: the mean of the sentences' IoU (not Generalized IoU); None for no sentence."""
    return math.fsum(sentence.iou for sentence in sentences) / len(sentences) if sentences else None


def precision_at(threshold: float, sentences: Sequence[SentenceScore]) -> float | None:
    """Pr@threshold: the share of sentences with IoU >= threshold; None for no sentence."""
    return share([sentence.iou >= threshold for sentence in sentences])


def no_target_accuracy(sentences: Iterable[SentenceScore]) -> float | None:
    """N-acc: the share of no-target sentences that were answered with no target; None where there is none."""
    return share([not sentence.answered for sentence in sentences if not sentence.targeted])


def target_accuracy(sentences: Iterable[SentenceScore]) -> float | None:
    """T-acc: the share of targeted sentences that were answered with a target; None where there is none."""
    return share([sentence.answered for sentence in sentences if sentence.targeted])


def share(facts: Sequence[bool]) -> float | None:
    """The share of the true ones; None for none at all."""
    return sum(facts) / len(facts) if facts else None
