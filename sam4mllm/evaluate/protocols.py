"""The three protocols: how an answer about one sentence is judged. Codebases disagree here, so every score names its
own.

`refcoco` is LAVT's and LISA's, for RefCOCO/+/g; `grefcoco` is ReLA's, for gRefCOCO; `reasonseg` is LISA's, for
ReasonSeg. An answer counts as "no target" when it says so or when its mask has fewer than `min_pixels` pixels. Ignored
pixels count for nobody under any of them, neither in I nor in U; ReasonSeg has such, and data of one's own may. This
module knows masks only: no files, no ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sam4mllm.errors import DataError
from sam4mllm.evaluate.metrics import Mask, SentenceScore, overlap


@dataclass(frozen=True, slots=True)
class PredictedMask:
    """An answer to judge: its mask (H, W) bool, and whether it said "no target" whatever the mask holds."""

    mask: Mask
    said_none: bool = False

    def names_target(self, min_pixels: int) -> bool:
        return not self.said_none and int(np.count_nonzero(self.mask)) >= min_pixels


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """A way to judge, and the figures that have a meaning under it.

    `judge(answer, truth (H, W) bool, ignored (H, W) bool or None, min_pixels)` judges one sentence. `asks_no_target`
    says whether sentences that mean nothing are part of the game (N-acc, T-acc; Pr@ over targeted sentences only);
    `has_boxes` whether each sentence has the one annotated box that Acc@0.5 compares with.
    """

    name: str
    judge: Callable[[PredictedMask, Mask, Mask | None, int], SentenceScore]
    asks_no_target: bool
    has_boxes: bool


def judge_refcoco(answer: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """LAVT's and LISA's rule: a "no target" is an empty mask, I = 0 and U = the area of the truth.

    Two empty masks, which RefCOCO does not hold, have IoU 0 as in LAVT.
    """
    answer, truth = _counted(answer, truth, ignored)
    answered = answer.names_target(min_pixels)
    found = overlap(answer.mask if answered else np.zeros_like(truth), truth)
    return SentenceScore(found.intersection, found.union, found.iou, bool(truth.any()), answered)


def judge_grefcoco(answer: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """ReLA's rule for sentences that may mean nothing.

    Nothing meant and none answered: IoU 1, nothing added to U. Nothing meant, something answered: IoU 0, U grows by the
    answer's area. Something meant, none answered: I = 0, IoU 0, and U grows by the union with the mask that the answer
    had nevertheless.
    """
    answer, truth = _counted(answer, truth, ignored)
    answered, targeted = answer.names_target(min_pixels), bool(truth.any())
    found = overlap(answer.mask, truth)
    if answered:
        return SentenceScore(found.intersection, found.union, found.iou, targeted, True)
    return SentenceScore(0, found.union, 0.0, True, False) if targeted else SentenceScore(0, 0, 1.0, False, False)


def judge_reasonseg(answer: PredictedMask, truth: Mask, ignored: Mask | None, min_pixels: int) -> SentenceScore:
    """LISA's rule: a "no target" is an empty mask; two empty masks have IoU 1."""
    answer, truth = _counted(answer, truth, ignored)
    answered = answer.names_target(min_pixels)
    found = overlap(answer.mask if answered else np.zeros_like(truth), truth)
    iou = found.iou if found.union else 1.0
    return SentenceScore(found.intersection, found.union, iou, bool(truth.any()), answered)


def _counted(answer: PredictedMask, truth: Mask, ignored: Mask | None) -> tuple[PredictedMask, Mask]:
    """PredictedMask and truth without the pixels that count for nobody."""
    return (
        (answer, truth)
        if ignored is None
        else (PredictedMask(answer.mask & ~ignored, answer.said_none), truth & ~ignored)
    )


PROTOCOLS: dict[str, EvalProtocol] = {
    "refcoco": EvalProtocol("refcoco", judge_refcoco, asks_no_target=False, has_boxes=True),
    "grefcoco": EvalProtocol("grefcoco", judge_grefcoco, asks_no_target=True, has_boxes=False),
    "reasonseg": EvalProtocol("reasonseg", judge_reasonseg, asks_no_target=False, has_boxes=False),
}

# The protocol under which each data set's published figures were taken.
PROTOCOL_OF_DATASET: dict[str, str] = {
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "grefcoco": "grefcoco",
    "reasonseg": "reasonseg",
    "shapes": "refcoco",
    # Data of one's own may mean several objects or none, which gRefCOCO's rules alone provide for.
    "jsonl": "grefcoco",
    "coco": "grefcoco",
    "hub": "grefcoco",
}


def protocol_for(dataset: str, protocol: str | None = None) -> EvalProtocol:
    """The protocol of this name, or the data set's own where none is named.

    Raises:
        DataError: an unknown protocol; no protocol named for an unknown data set.
    """
    name = PROTOCOL_OF_DATASET.get(dataset) if protocol is None else protocol
    if name not in PROTOCOLS:
        raise DataError(f"no protocol {protocol!r} for the data set {dataset!r}; name one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
