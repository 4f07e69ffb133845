"""Evaluation protocols: how the mask predicted for one sentence is scored against the annotated one.

Codebases differ here, so every score names its protocol:

- `refcoco`: LAVT and LISA, for RefCOCO/+/g.
- `grefcoco`: ReLA, for gRefCOCO, where a sentence may have no target.
- `reasonseg`: LISA, for ReasonSeg.

An answer is a "no target" answer if the model answers so or if its mask has fewer than `min_pixels` pixels. Ignored
pixels are excluded from intersection and union under every protocol; ReasonSeg has such pixels, and custom data may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sam4mllm.data.registry import DATASETS
from sam4mllm.errors import DataError
from sam4mllm.evaluation.metrics import Mask, SentenceScore, overlap


@dataclass(frozen=True, slots=True)
class PredictedMask:
    """The union mask (H, W) bool of an answer, and whether the answer was "no target", whatever its mask is."""

    mask: Mask
    answered_no_target: bool = False

    def has_target(self, min_pixels: int) -> bool:
        """Return whether the answer names a target: not "no target", and at least `min_pixels` pixels."""
        return not self.answered_no_target and int(np.count_nonzero(self.mask)) >= min_pixels


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """A rule that scores one sentence, and which metrics are defined under it.

    Attributes:
        name: The protocol's name.
        score_sentence: The function (prediction, truth (H, W) bool, ignored (H, W) bool or None, min_pixels) ->
            `SentenceScore`.
        has_no_target: Whether the data may contain sentences without a target. Then N-acc and T-acc are reported, and
            Pr@ is over the sentences with a target.
        has_boxes: Whether each sentence has one annotated box, so that Acc@0.5 is defined.
    """

    name: str
    score_sentence: Callable[[PredictedMask, Mask, Mask | None, int], SentenceScore]
    has_no_target: bool
    has_boxes: bool


def score_refcoco(prediction: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of LAVT and LISA.

    A "no target" answer is an empty mask: I = 0 and U = the area of the truth. Two empty masks, which RefCOCO does not
    have, get IoU 0 as in LAVT.
    """
    prediction, truth = _without_ignored(prediction, truth, ignored)
    answered = prediction.has_target(min_pixels)
    areas = overlap(prediction.mask if answered else np.zeros_like(truth), truth)
    return SentenceScore(areas.intersection, areas.union, areas.iou, bool(truth.any()), answered)


def score_grefcoco(prediction: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of ReLA, for sentences that may have no target.

    - No target, "no target" answered: IoU 1, nothing is added to I and U.
    - No target, a mask answered: IoU 0, U grows by the area of the predicted mask.
    - A target, "no target" answered: I = 0, IoU 0, and U grows by the union of the truth and the mask that the answer
      has nevertheless.
    - A target, a mask answered: I, U and IoU of the two masks.
    """
    prediction, truth = _without_ignored(prediction, truth, ignored)
    answered, targeted = prediction.has_target(min_pixels), bool(truth.any())
    areas = overlap(prediction.mask, truth)
    if answered:
        return SentenceScore(areas.intersection, areas.union, areas.iou, targeted, True)
    return SentenceScore(0, areas.union, 0.0, True, False) if targeted else SentenceScore(0, 0, 1.0, False, False)


def score_reasonseg(prediction: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of LISA: a "no target" answer is an empty mask; two empty masks have IoU 1."""
    prediction, truth = _without_ignored(prediction, truth, ignored)
    answered = prediction.has_target(min_pixels)
    areas = overlap(prediction.mask if answered else np.zeros_like(truth), truth)
    iou = areas.iou if areas.union else 1.0
    return SentenceScore(areas.intersection, areas.union, iou, bool(truth.any()), answered)


def _without_ignored(prediction: PredictedMask, truth: Mask, ignored: Mask | None) -> tuple[PredictedMask, Mask]:
    if ignored is None:
        return prediction, truth
    return PredictedMask(prediction.mask & ~ignored, prediction.answered_no_target), truth & ~ignored


PROTOCOLS: dict[str, EvalProtocol] = {
    "refcoco": EvalProtocol("refcoco", score_refcoco, has_no_target=False, has_boxes=True),
    "grefcoco": EvalProtocol("grefcoco", score_grefcoco, has_no_target=True, has_boxes=False),
    "reasonseg": EvalProtocol("reasonseg", score_reasonseg, has_no_target=False, has_boxes=False),
}


def protocol_for(dataset: str, protocol: str | None = None) -> EvalProtocol:
    """Return the protocol of this name, or the data set's own if None.

    Raises:
        DataError: The protocol is unknown, or None for an unknown data set.
    """
    name = protocol
    if name is None and dataset in DATASETS:
        name = DATASETS[dataset].protocol
    if name not in PROTOCOLS:
        raise DataError(f"no protocol {protocol!r} for the data set {dataset!r}; name one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
