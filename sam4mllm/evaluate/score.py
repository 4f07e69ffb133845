"""Scores: predictions against the samples of a split, under a protocol.

Predictions come one by one and in any order, and each is judged and dropped, so a file of any length costs the memory
of one answer. Every query of the split counts: one without a prediction, and one whose line is malformed or an error,
counts as an empty mask. This module knows no models and no file formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictionLine
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.evaluate.metrics import (
    RIGHT_ABOVE,
    Mask,
    SentenceScore,
    cumulative_iou,
    mean_iou,
    no_target_accuracy,
    precision_at,
    right_objects,
    target_accuracy,
    union_of,
)
from sam4mllm.evaluate.protocols import EvalProtocol, PredictedMask, protocol_for

# An error names so many ids and counts the rest.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of one split: fractions from 0 to 1, None where a figure has no meaning for the data set.

    `n` counts the queries, `missing` those without a line, `malformed` the lines whose text was no answer, `errors`
    those that say why there is none.
    """

    dataset: str
    split: str
    protocol: str
    n: int
    missing: int
    malformed: int
    ciou: float | None
    giou: float | None
    n_acc: float | None
    t_acc: float | None
    pr_70: float | None
    pr_80: float | None
    pr_90: float | None
    acc_50: float | None
    errors: int = 0

    def to_json(self) -> dict[str, Any]:
        """What `score --json` writes: all but `errors`, which the predictions themselves tell."""
        return {name: value for name, value in asdict(self).items() if name != "errors"}


@dataclass(frozen=True, slots=True)
class ScoredPredictions:
    """The figures of a split, and what each of its sentences added to them, by id in the order of the split.

    `right` says of each line with status "ok" which of its objects have IoU > 0.5 with an object that is meant, one to
    one.
    """

    scores: Scores
    by_id: dict[str, SentenceScore]
    right: dict[str, tuple[bool, ...]]


@dataclass(slots=True)
class _Boxes:
    """Acc@0.5: the ids whose first box is right, and whether any answer came with or without a box.

    `of_one` says that every phrase means one object: of several none is the first.
    """

    right: set[str]
    of_one: bool
    any_with: bool = False
    any_without: bool = False


def score(
    predictions: Iterable[PredictionLine],
    samples: Sequence[Sample],
    *,
    dataset: str,
    split: str,
    protocol: str | None = None,
    min_pixels: int = 1,
) -> Scores:
    """The figures of a split; arguments and errors as in `judge`."""
    return judge(predictions, samples, dataset=dataset, split=split, protocol=protocol, min_pixels=min_pixels).scores


def judge(
    predictions: Iterable[PredictionLine],
    samples: Sequence[Sample],
    *,
    dataset: str,
    split: str,
    protocol: str | None = None,
    min_pixels: int = 1,
) -> ScoredPredictions:
    """The figures of a split, and each sentence's share in them.

    Args:
        predictions: one line per query, in any order; read once.
        samples: every query of the split with its truth.
        dataset: the data set's name, which also names the protocol unless one is given.
        split: the split's name.
        protocol: `refcoco`, `grefcoco` or `reasonseg`; None for the data set's own.
        min_pixels: an answer whose mask has fewer pixels counts as "no target".

    Raises:
        PredictionsError: ids that no query has, ids that come twice, or masks of another size than their image's.
        DataError: no samples; an unknown protocol; under `refcoco`, a sample that means nothing.
    """
    rules = rules_for(samples, dataset=dataset, split=split, protocol=protocol)
    by_id = {sample.id: sample for sample in samples}
    judged: dict[str, SentenceScore] = {}
    right: dict[str, tuple[bool, ...]] = {}
    boxes = _Boxes(set(), of_one=all(len(sample.objects) == 1 for sample in samples))
    malformed = errors = 0
    unknown: list[str] = []
    doubled: list[str] = []
    for line in predictions:
        sample = by_id.get(line.id)
        if sample is None:
            unknown.append(line.id)
        elif line.id in judged:
            doubled.append(line.id)
        else:
            masks, truth = _masks(line, sample), [item.mask() for item in sample.objects]
            ignored = sample.ignored()
            said = PredictedMask(union_of(masks, sample.size_wh), said_none=line.status == "no_object")
            judged[line.id] = rules.judge(said, union_of(truth, sample.size_wh), ignored, min_pixels)
            if line.status == "ok":
                right[line.id] = right_objects(masks, truth, ignored)
            malformed += line.status == "malformed"
            errors += line.status == "error"
            if rules.has_boxes:
                _compare_boxes(line, sample, boxes)
    _refuse(unknown, doubled, f"{dataset} {split}")
    missing = len(by_id) - len(judged)
    for sample in samples:
        if sample.id not in judged:
            nothing = PredictedMask(union_of([], sample.size_wh))
            judged[sample.id] = rules.judge(nothing, sample.mask(), sample.ignored(), min_pixels)
    sentences = {sample.id: judged[sample.id] for sample in samples}
    counts = {"missing": missing, "malformed": malformed, "errors": errors}
    scores = _figures(list(sentences.values()), boxes, rules, dataset, split, counts)
    return ScoredPredictions(scores, sentences, right)


def rules_for(samples: Sequence[Sample], *, dataset: str, split: str, protocol: str | None = None) -> EvalProtocol:
    """The protocol that the samples are judged under.

    Raises:
        DataError: no samples; an unknown protocol; under `refcoco`, a sample that means nothing.
    """
    rules = protocol_for(dataset, protocol)
    if not samples:
        raise DataError(f"{dataset} {split}: no samples to score")
    if rules.has_boxes and (empty := [sample.id for sample in samples if not sample.objects]):
        raise DataError(
            f"the protocol {rules.name} has no place for a phrase without target ({_few(empty)}); use grefcoco"
        )
    return rules


def _figures(
    sentences: Sequence[SentenceScore],
    boxes: _Boxes,
    rules: EvalProtocol,
    dataset: str,
    split: str,
    counts: dict[str, int],
) -> Scores:
    measured = [sentence for sentence in sentences if sentence.targeted] if rules.asks_no_target else sentences
    # Masks from a program that writes no boxes say nothing about its boxes; wrong or missing answers do.
    boxes_meant = rules.has_boxes and boxes.of_one and (boxes.any_with or not boxes.any_without)
    return Scores(
        dataset=dataset,
        split=split,
        protocol=rules.name,
        n=len(sentences),
        **counts,
        ciou=cumulative_iou(sentences),
        giou=mean_iou(sentences),
        n_acc=no_target_accuracy(sentences) if rules.asks_no_target else None,
        t_acc=target_accuracy(sentences) if rules.asks_no_target else None,
        pr_70=precision_at(0.7, measured),
        pr_80=precision_at(0.8, measured),
        pr_90=precision_at(0.9, measured),
        acc_50=len(boxes.right) / len(sentences) if boxes_meant else None,
    )


def _masks(line: PredictionLine, sample: Sample) -> list[Mask]:
    """The masks of the line's objects; none of a line that is malformed or an error.

    Raises:
        PredictionsError: a mask of another size than the image's.
    """
    width, height = sample.size_wh
    for item in line.objects:
        if tuple(item.segmentation["size"]) != (height, width):
            raise PredictionsError(
                f"prediction {line.id}: a mask is {tuple(item.segmentation['size'])} (H, W), its image is "
                f"{(height, width)}; masks are scored at the original image's size"
            )
    return [] if line.status in ("malformed", "error") else [decode(item.segmentation) for item in line.objects]


def _compare_boxes(line: PredictionLine, sample: Sample, boxes: _Boxes) -> None:
    """Acc@0.5 takes the first box alone: taking the best of several would flatter."""
    if line.status != "ok" or not line.objects:
        return
    prompt = line.objects[0].prompt
    if prompt is None or prompt.box is None:
        boxes.any_without = True
        return
    boxes.any_with = True
    if prompt.box.iou(sample.objects[0].box) > RIGHT_ABOVE:
        boxes.right.add(line.id)


def _refuse(unknown: Sequence[str], doubled: Sequence[str], split: str) -> None:
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} id(s) name no query of {split} ({_few(unknown)})")
    if doubled:
        faults.append(f"{len(doubled)} id(s) come twice ({_few(doubled)})")
    if faults:
        raise PredictionsError(f"predictions: {'; '.join(faults)}; one line per query, from this data set and split")


def _few(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
