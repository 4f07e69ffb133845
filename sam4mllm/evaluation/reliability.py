"""Reliability of confidence scores: their calibration error, and the metrics of the most confident answers.

The figures apply to scores of any origin. A figure is None if some of its scores are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sam4mllm.data.predictions import PredictionLine
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.evaluation.score import ScoredPredictions

BINS = 10
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True, slots=True)
class Bin:
    """The `n` scores above `low` and up to `high`; the first bin includes 0.

    `score` is their mean, and `right` the share of the predictions with them that is correct; None for an empty bin.
    """

    low: float
    high: float
    n: int
    score: float | None
    right: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """The expected calibration error (ECE) of `n` scores, and the bins that it is computed from."""

    n: int
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """The metrics of the most confident answers, at one share of answers kept.

    `coverage` is the share, `n` the number of answers kept, and `score` the lowest of their scores. `ciou` is None if
    their masks have no pixel.
    """

    coverage: float
    n: int
    score: float
    ciou: float | None
    giou: float


@dataclass(frozen=True, slots=True)
class ReliabilityReport:
    """The reliability of the scores of a split; None for scores that are missing or not from 0 to 1.

    Attributes:
        objects: The scores of predicted objects, which are correct with IoU > 0.5.
        no_object: The scores of "no object" answers, which are correct for sentences without a target.
        coverage: The metrics of the most confident answers, from all of them to a tenth.
    """

    objects: Reliability | None
    no_object: Reliability | None
    coverage: tuple[CoveragePoint, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return the split's `reliability` in results.json."""
        return asdict(self)


def reliability_report(predictions: Iterable[PredictionLine], scored: ScoredPredictions) -> ReliabilityReport:
    """Compute the reliability of the confidence scores of a split's predictions, which are read once."""
    objects: list[tuple[float | None, bool]] = []
    no_object: list[tuple[float | None, bool]] = []
    # Malformed, failed and missing answers have confidence 0, whatever their line holds.
    answers: dict[str, float | None] = dict.fromkeys(scored.by_id, 0.0)
    for line in predictions:
        if line.status == "ok":
            objects += zip((item.score for item in line.objects), scored.correct[line.id], strict=True)
        if line.status == "no_object":
            no_object.append((line.score, not scored.by_id[line.id].targeted))
        if line.status in ("ok", "no_object"):
            answers[line.id] = line.score
    return ReliabilityReport(_reliability(objects), _reliability(no_object), coverage_curve(answers, scored.by_id))


def expected_calibration_error(scores: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float | None:
    """Compute the ECE (Guo et al. 2017, arXiv 1706.04599, equations 3 and 5); None for no score.

    It is the mean over the bins of |mean score - share of correct predictions|, weighted by the bins' sizes.

    Raises:
        ValueError: As `reliability_bins`.
    """
    return _ece(reliability_bins(scores, correct, bins))


def reliability_bins(scores: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> tuple[Bin, ...]:
    """Sort the scores into `bins` bins of equal width, the lowest first.

    Raises:
        ValueError: A score is not from 0 to 1, there is not one outcome for each score, or there is no bin.
    """
    if bins < 1 or len(scores) != len(correct):
        raise ValueError(
            f"expected one outcome per score and at least 1 bin; got {len(correct)} outcomes, {len(scores)} scores and "
            f"{bins} bins"
        )
    if not all(_is_fraction(score) for score in scores):
        raise ValueError(f"scores must be from 0 to 1; got {min(scores)} to {max(scores)}")
    edges = [number / bins for number in range(bins + 1)]
    # A score on an edge belongs to the bin below.
    bin_of = np.searchsorted(edges[1:-1], np.asarray(scores, dtype=np.float64), side="left").tolist()
    filled = []
    for number in range(bins):
        members = [index for index, own in enumerate(bin_of) if own == number]
        score = math.fsum(scores[index] for index in members) / len(members) if members else None
        share = sum(correct[index] for index in members) / len(members) if members else None
        filled.append(Bin(edges[number], edges[number + 1], len(members), score, share))
    return tuple(filled)


def coverage_curve(
    scores: Mapping[str, float | None],
    sentences: Mapping[str, SentenceScore],
    coverages: Sequence[float] = COVERAGES,
) -> tuple[CoveragePoint, ...] | None:
    """Compute cIoU and gIoU of the most confident answers for each share that is kept; None if a score is missing.

    Of n answers, the ceil(`coverage` * n) with the highest scores are kept. If several answers share the lowest score
    that is kept, each of them counts by the fraction of them that is kept, so the result does not depend on the
    order of equal scores. Only the ranking of the scores matters. Both mappings have the same ids.
    """
    known = {name: score for name, score in scores.items() if score is not None and not math.isnan(score)}
    if not known or len(known) < len(scores):
        return None
    ranking = sorted(known, key=lambda name: -known[name])
    groups = [(score, [sentences[name] for name in names]) for score, names in groupby(ranking, known.__getitem__)]
    curve = []
    for coverage in coverages:
        # Rounded, so that 0.7 * 10 is not 8 because of the last binary digit.
        kept = left = math.ceil(round(coverage * len(ranking), 9))
        intersection = union = iou = lowest = 0.0
        for score, group in groups:
            part = min(left / len(group), 1.0)
            if part <= 0:
                break
            intersection += part * sum(sentence.intersection for sentence in group)
            union += part * sum(sentence.union for sentence in group)
            iou += part * math.fsum(sentence.iou for sentence in group)
            left, lowest = left - len(group), score
        curve.append(CoveragePoint(coverage, kept, lowest, intersection / union if union else None, iou / kept))
    return tuple(curve)


def _reliability(outcomes: Sequence[tuple[float | None, bool]]) -> Reliability | None:
    known = [(score, correct) for score, correct in outcomes if score is not None and _is_fraction(score)]
    if not known or len(known) < len(outcomes):
        return None
    bins = reliability_bins([score for score, _ in known], [correct for _, correct in known])
    ece = _ece(bins)
    return None if ece is None else Reliability(len(known), ece, bins)


def _ece(bins: Sequence[Bin]) -> float | None:
    total = sum(each.n for each in bins)
    gaps = [each.n * abs(each.right - each.score) for each in bins if each.right is not None and each.score is not None]
    return math.fsum(gaps) / total if total else None


def _is_fraction(score: float) -> bool:
    return 0 <= score <= 1
