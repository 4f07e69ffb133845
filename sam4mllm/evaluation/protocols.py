"""Evaluation protocols: how the mask predicted for one sentence is scored against the annotated one.

Codebases differ here, so every score names its protocol:

- `refcoco`: LAVT and LISA, for RefCOCO/+/g.
- `grefcoco`: ReLA, for gRefCOCO, where a sentence may have no target.
- `reasonseg`: LISA, for ReasonSeg.

An answer is a "no target" answer if the model answers so or if its mask has fewer than `min_pixels` pixels. Ignored
pixels are excluded from intersection and union under every protocol; ReasonSeg has such pixels, and custom data may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sam4mllm.data.registry import DATASETS
from sam4mllm.errors import DataError
from sam4mllm.evaluation.areas import Areas
from sam4mllm.evaluation.metrics import Overlap, SentenceScore


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """A rule that scores one sentence, and which metrics are defined under it.

    Attributes:
        name: The protocol's name.
        score_sentence: The function (areas without ignored pixels, whether the answer is "no target" whatever its mask
            is, min_pixels) -> `SentenceScore`.
        has_no_target: Whether the data may contain sentences without a target. Then N-acc and T-acc are reported, and
            Pr@ is over the sentences with a target.
        has_boxes: Whether each sentence has one annotated box, so that Acc@0.5 is defined.
    """

    name: str
    score_sentence: Callable[[Areas, bool, int], SentenceScore]
    has_no_target: bool
    has_boxes: bool


def score_refcoco(areas: Areas, answered_no_target: bool, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of LAVT and LISA.

    A "no target" answer is an empty mask: I = 0 and U = the area of the truth. Two empty masks, which RefCOCO does not
    have, get IoU 0 as in LAVT.
    """
    answered = _answered(areas, answered_no_target, min_pixels)
    pixels = areas.overlap if answered else Overlap(0, areas.truth)
    return SentenceScore(pixels.intersection, pixels.union, pixels.iou, areas.truth > 0, answered)


def score_grefcoco(areas: Areas, answered_no_target: bool, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of ReLA, for sentences that may have no target.

    - No target, "no target" answered: IoU 1, nothing is added to I and U.
    - No target, a mask answered: IoU 0, U grows by the area of the predicted mask.
    - A target, "no target" answered: I = 0, IoU 0, and U grows by the union of the truth and the mask that the answer
      has nevertheless.
    - A target, a mask answered: I, U and IoU of the two masks.
    """
    answered, targeted = _answered(areas, answered_no_target, min_pixels), areas.truth > 0
    pixels = areas.overlap
    if answered:
        return SentenceScore(pixels.intersection, pixels.union, pixels.iou, targeted, True)
    return SentenceScore(0, pixels.union, 0.0, True, False) if targeted else SentenceScore(0, 0, 1.0, False, False)


def score_reasonseg(areas: Areas, answered_no_target: bool, min_pixels: int) -> SentenceScore:
    """Score one sentence by the rule of LISA: a "no target" answer is an empty mask; two empty masks have IoU 1."""
    score = score_refcoco(areas, answered_no_target, min_pixels)
    return score if score.union else score._replace(iou=1.0)


def _answered(areas: Areas, answered_no_target: bool, min_pixels: int) -> bool:
    """Return whether the answer names a target: not "no target", and at least `min_pixels` pixels."""
    return not answered_no_target and areas.predicted >= min_pixels


PROTOCOLS: Mapping[str, EvalProtocol] = MappingProxyType(
    {
        "refcoco": EvalProtocol("refcoco", score_refcoco, has_no_target=False, has_boxes=True),
        "grefcoco": EvalProtocol("grefcoco", score_grefcoco, has_no_target=True, has_boxes=False),
        "reasonseg": EvalProtocol("reasonseg", score_reasonseg, has_no_target=False, has_boxes=False),
    }
)


def protocol_for(dataset: str, protocol: str | None = None) -> EvalProtocol:
    """Return the protocol of this name, or the data set's own if None.

    Raises:
        DataError: The protocol is unknown, or None for an unknown data set.
    """
    name = protocol
    if name is None and dataset in DATASETS:
        name = DATASETS[dataset].protocol
    if name is None or name not in PROTOCOLS:
        raise DataError(f"no protocol {protocol!r} for the data set {dataset!r}; name one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
