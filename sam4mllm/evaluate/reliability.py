"""Trust: how far scores can be believed, by calibration and by what is left when the unsure answers are dropped.

Scores and outcomes come in, figures go out. This module knows no masks, no files and no model, and does not ask how a
score was made: a figure for which scores are wanting is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sam4mllm.data.predictions import PredictionLine
from sam4mllm.evaluate.metrics import SentenceScore
from sam4mllm.evaluate.score import ScoredPredictions

BINS = 10
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True, slots=True)
class Bin:
    """The `n` scores above `low` and up to `high` (the first bin holds 0 as well).

    `score` is their mean and `right` the share of what they were given to that is right; None for an empty bin.
    """

    low: float
    high: float
    n: int
    score: float | None
    right: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well `n` scores tell how often what they were given to is right: the ECE, and the bins that it is made of."""

    n: int
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """What is left when the share `coverage` of the answers is kept, the surest first.

    `n` answers are kept, the least sure with the score `score`. `ciou` and `giou` are theirs, as the protocol judged
    them; cIoU is None where they have no pixel.
    """

    coverage: float
    n: int
    score: float
    ciou: float | None
    giou: float


@dataclass(frozen=True, slots=True)
class ReliabilityReport:
    """How far the scores of a split can be trusted; None for what was not there, or not scored from 0 to 1.

    objects: of the scores of predicted objects, which are right with IoU > 0.5.
    no_object: of the scores of answers that nothing fits, which are right where nothing is meant.
    coverage: from all answers to the surest tenth.
    """

    objects: Reliability | None
    no_object: Reliability | None
    coverage: tuple[CoveragePoint, ...] | None

    def to_json(self) -> dict[str, Any]:
        """The split's `trust` in results.json."""
        return asdict(self)


def reliability_report(predictions: Sequence[PredictionLine], judgement: ScoredPredictions) -> ReliabilityReport:
    """How far the scores of a split's predictions can be trusted, by what they were judged to be."""
    objects: list[tuple[float | None, bool]] = []
    nothing: list[tuple[float | None, bool]] = []
    answers: dict[str, float | None] = dict.fromkeys(judgement.by_id, 0.0)
    for line in predictions:
        if line.status == "ok":
            objects += zip((item.score for item in line.objects), judgement.right[line.id], strict=True)
        if line.status == "no_object":
            nothing.append((line.score, not judgement.by_id[line.id].targeted))
        # What could not be read, failed or was never given is nobody's to rely on, whatever its line says.
        if line.status in ("ok", "no_object"):
            answers[line.id] = line.score
    return ReliabilityReport(_reliability(objects), _reliability(nothing), coverage_curve(answers, judgement.by_id))


def expected_calibration_error(scores: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float | None:
    """ECE (Guo et al. 2017, arXiv 1706.04599, equations 3 and 5); None for no score.

    The bins' distances between mean score and share of the right ones, each weighed by its share of the scores.

    Raises:
        ValueError: as `reliability_bins`.
    """
    return _ece(reliability_bins(scores, right, bins))


def reliability_bins(scores: Sequence[float], right: Sequence[bool], bins: int = BINS) -> tuple[Bin, ...]:
    """The scores in `bins` bins of equal width, the lowest first.

    Raises:
        ValueError: a score that is not from 0 to 1; not one outcome for each score; no bin.
    """
    if bins < 1 or len(scores) != len(right):
        raise ValueError(f"expected 1 bin or more and an outcome a score; got {bins}, {len(right)}, {len(scores)}")
    if not all(_is_share(score) for score in scores):
        raise ValueError(f"scores are from 0 to 1; got {min(scores)} to {max(scores)}")
    edges = [number / bins for number in range(bins + 1)]
    # A score on an edge belongs below it.
    places = np.searchsorted(edges[1:-1], np.asarray(scores, dtype=np.float64), side="left").tolist()
    found = []
    for place in range(bins):
        held = [index for index, own in enumerate(places) if own == place]
        score = math.fsum(scores[index] for index in held) / len(held) if held else None
        share = sum(right[index] for index in held) / len(held) if held else None
        found.append(Bin(edges[place], edges[place + 1], len(held), score, share))
    return tuple(found)


def coverage_curve(
    scores: Mapping[str, float | None], judged: Mapping[str, SentenceScore], coverages: Sequence[float] = COVERAGES
) -> tuple[CoveragePoint, ...] | None:
    """The cIoU and gIoU of the surest answers, for each share of them that is kept; None where an answer has no score.

    Of n answers, the ceil(`coverage` * n) with the highest scores are kept. Of answers with one score at the border
    each counts by the share of them that is kept, so that no order among equals is made up. Only the order of the
    scores matters, and both mappings hold the same ids.
    """
    known = {name: score for name, score in scores.items() if score is not None and not math.isnan(score)}
    if not known or len(known) < len(scores):
        return None
    ranking = sorted(known, key=lambda name: -known[name])
    groups = [(score, [judged[name] for name in names]) for score, names in groupby(ranking, known.__getitem__)]
    curve = []
    for coverage in coverages:
        # A share such as 0.7 of 10 must not come out as 8 by its last binary digit.
        wanted = left = math.ceil(round(coverage * len(ranking), 9))
        intersection = union = iou = least = 0.0
        for score, sentences in groups:
            part = min(left / len(sentences), 1.0)
            if part <= 0:
                break
            intersection += part * sum(sentence.intersection for sentence in sentences)
            union += part * sum(sentence.union for sentence in sentences)
            iou += part * math.fsum(sentence.iou for sentence in sentences)
            left, least = left - len(sentences), score
        curve.append(CoveragePoint(coverage, wanted, least, intersection / union if union else None, iou / wanted))
    return tuple(curve)


def _reliability(scored: Sequence[tuple[float | None, bool]]) -> Reliability | None:
    known = [(score, right) for score, right in scored if score is not None and _is_share(score)]
    if not known or len(known) < len(scored):
        return None
    bins = reliability_bins([score for score, _ in known], [right for _, right in known])
    ece = _ece(bins)
    return None if ece is None else Reliability(len(known), ece, bins)


def _ece(bins: Sequence[Bin]) -> float | None:
    total = sum(each.n for each in bins)
    gaps = [each.n * abs(each.right - each.score) for each in bins if each.right is not None and each.score is not None]
    return math.fsum(gaps) / total if total else None


def _is_share(score: float) -> bool:
    return 0 <= score <= 1
