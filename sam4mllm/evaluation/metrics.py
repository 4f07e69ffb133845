"""Overlaps of masks, and the metrics computed from them: cIoU, gIoU, Pr@, N-acc, T-acc.

For a predicted mask P and an annotated mask G, the intersection I = |P and G| and the union U = |P or G|, in pixels at
the original image's size, are added up as integers, and the IoUs of the sentences exactly. So a metric depends neither
on the order of the sentences nor on how they were batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

CORRECT_IOU = 0.5
"""The IoU above which a mask, or a box, is correct."""


class SentenceScore(NamedTuple):
    """The scores of one sentence under a protocol, from which the metrics are computed.

    `intersection` and `union` are pixels, for the sums of cIoU; `iou` is for gIoU and Pr@. `targeted` is whether the
    annotated mask has a pixel, `answered` whether the answer names a target.
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
        """Intersection over union; 0 for two empty masks, which some protocols define differently."""
        return self.intersection / self.union if self.union else 0.0


def overlap(predicted: Mask, truth: Mask) -> Overlap:
    """Compute intersection and union of two masks (H, W) bool.

    Raises:
        ValueError: Masks of different shapes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one image have one shape; got {predicted.shape} and {truth.shape} (H, W)")
    both = int(np.count_nonzero(predicted & truth))
    return Overlap(both, int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth)) - both)


def union_of(masks: Sequence[Mask], size_wh: tuple[int, int]) -> Mask:
    """Return the union (H, W) bool of masks (H, W); all False for no mask."""
    union: Mask = np.zeros(size_wh[::-1], dtype=bool)
    for mask in masks:
        union |= mask
    return union


def correct_objects(predicted: Sequence[Mask], truth: Sequence[Mask], ignored: Mask | None = None) -> tuple[bool, ...]:
    """Return which of the predicted masks (H, W) bool are correct: matched with an annotated mask with IoU > 0.5.

    Masks are matched one to one, greedily by IoU; among equals the earlier mask comes first. `ignored` pixels are
    excluded.
    """
    if ignored is not None:
        predicted, truth = [mask & ~ignored for mask in predicted], [mask & ~ignored for mask in truth]
    pairs = [(overlap(mask, other).iou, i, j) for i, mask in enumerate(predicted) for j, other in enumerate(truth)]
    matches = match_greedily(pairs, above=CORRECT_IOU)
    return tuple(i in matches for i in range(len(predicted)))


def match_greedily(pairs: Iterable[tuple[float, int, int]], *, above: float) -> dict[int, int]:
    """Match i with j one to one, given (IoU, i, j): the highest IoU first, and among equals the lower i, then j.

    Pairs whose IoU is not above `above` are never matched.
    """
    matches: dict[int, int] = {}
    for _, i, j in sorted((pair for pair in pairs if pair[0] > above), key=lambda pair: (-pair[0], *pair[1:])):
        if i not in matches and j not in matches.values():
            matches[i] = j
    return matches


def cumulative_iou(sentences: Iterable[SentenceScore]) -> float | None:
    """Compute cIoU: the sum of I over the sum of U; None if no sentence has a pixel."""
    intersection = union = 0
    for sentence in sentences:
        intersection += sentence.intersection
        union += sentence.union
    return intersection / union if union else None


def mean_iou(sentences: Sequence[SentenceScore]) -> float | None:
    """Compute gIoU: the mean of the sentences' IoU (not Generalized IoU); None for no sentence."""
    return math.fsum(sentence.iou for sentence in sentences) / len(sentences) if sentences else None


def precision_at(threshold: float, sentences: Sequence[SentenceScore]) -> float | None:
    """Compute Pr@threshold: the share of sentences with IoU >= threshold; None for no sentence."""
    return share([sentence.iou >= threshold for sentence in sentences])


def no_target_accuracy(sentences: Iterable[SentenceScore]) -> float | None:
    """Compute N-acc: the share of sentences without a target with a "no target" answer; None for no such sentence."""
    return share([not sentence.answered for sentence in sentences if not sentence.targeted])


def target_accuracy(sentences: Iterable[SentenceScore]) -> float | None:
    """Compute T-acc: the share of sentences with a target whose answer names one; None for no such sentence."""
    return share([sentence.answered for sentence in sentences if sentence.targeted])


def share(facts: Sequence[bool]) -> float | None:
    """Return the share of true values; None for no value."""
    return sum(facts) / len(facts) if facts else None
