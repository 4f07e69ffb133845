"""Reliability of scores: ECE and the coverage curve, by hand and by their properties; and the plot of both."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.evaluation.metrics import SentenceScore, cumulative_iou
from sam4mllm.evaluation.reliability import (
    COVERAGES,
    ReliabilityReport,
    coverage_curve,
    expected_calibration_error,
    reliability_bins,
    reliability_report,
)
from sam4mllm.evaluation.score import score_sentences
from sam4mllm.evaluation.splits import _plot_reliability
from sam4mllm.geometry import Box

SHARES = st.floats(0, 1)
SCORED = st.lists(st.tuples(SHARES, st.booleans()), min_size=1, max_size=40)
SENTENCES = st.builds(
    lambda union, part: SentenceScore(int(union * part), union, int(union * part) / union, True, True),
    st.integers(1, 50),
    SHARES,
)


def columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((2, 10), dtype=bool)
    mask[:, first:last] = True
    return mask


def sample(name: str, *spans: tuple[int, int], ignore: tuple[int, int] | None = None) -> Sample:
    objects = tuple(MaskObject(f"{name}/{i}", encode(columns(*span)), Box(0, 0, 1, 1)) for i, span in enumerate(spans))
    return Sample(name, Path("a.jpg"), (10, 2), "x", objects, None if ignore is None else encode(columns(*ignore)))


def line(name: str, *found: tuple[int, int, float | None], score: float | None = 0.5) -> PredictionLine:
    objects = tuple(PredictedObject(encode(columns(a, b)), score=own) for a, b, own in found)
    return PredictionLine(name, "ok" if found else "no_object", objects, score=score)


def test_ece_by_hand() -> None:
    # Bins of 0.2: (0, 0.2] with mean 0.1 and none right; (0.6, 0.8] with mean 0.75 and two of four right.
    scores, right = [0.05, 0.15, 0.7, 0.8, 0.75, 0.75], [False, False, True, True, False, False]
    assert expected_calibration_error(scores, right, bins=5) == pytest.approx((2 * 0.1 + 4 * 0.25) / 6)
    bins = reliability_bins(scores, right, bins=5)
    assert [each.n for each in bins] == [2, 0, 0, 4, 0]
    assert bins[1].score is None and bins[1].right is None
    assert (bins[3].low, bins[3].high, bins[3].right) == (0.6, 0.8, 0.5)


@pytest.mark.parametrize("number", range(11))
def test_a_score_on_an_edge_belongs_below_it(number: int) -> None:
    (found,) = [place for place, each in enumerate(reliability_bins([number / 10], [True])) if each.n]
    assert found == max(number - 1, 0)


@given(SCORED)
def test_ece_is_from_0_to_1_and_does_not_depend_on_the_order(scored: list[tuple[float, bool]]) -> None:
    ece = expected_calibration_error(*zip(*scored, strict=True))
    assert ece is not None and 0 <= ece <= 1
    random.Random(0).shuffle(scored)
    assert expected_calibration_error(*zip(*scored, strict=True)) == pytest.approx(ece)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=8))
def test_calibrated_scores_have_no_error(rights: list[int]) -> None:
    scores = [right / 10 for right in rights for _ in range(10)]
    facts = [index < right for right in rights for index in range(10)]
    assert expected_calibration_error(scores, facts) == pytest.approx(0, abs=1e-12)


def test_ece_of_no_score_is_none_and_a_score_beyond_1_is_refused() -> None:
    assert expected_calibration_error([], []) is None
    for wrong in (1.01, -0.01, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            expected_calibration_error([0.5, wrong], [True, True])


def test_coverage_by_hand() -> None:
    sentences = {
        "sure": SentenceScore(9, 10, 0.9, True, True),
        "fair": SentenceScore(5, 10, 0.5, True, True),
        "poor": SentenceScore(0, 20, 0.0, True, True),
        "nothing": SentenceScore(0, 0, 1.0, False, False),
    }
    scores = {"nothing": 0.99, "sure": 0.9, "fair": 0.5, "poor": 0.1}
    curve = coverage_curve(scores, sentences, (1.0, 0.75, 0.5, 0.25))
    assert curve is not None
    assert [each.n for each in curve] == [4, 3, 2, 1] and [each.score for each in curve] == [0.1, 0.5, 0.9, 0.99]
    assert [each.ciou for each in curve] == [pytest.approx(14 / 40), pytest.approx(14 / 20), 0.9, None]
    assert [each.giou for each in curve] == pytest.approx([2.4 / 4, 2.4 / 3, 1.9 / 2, 1.0])


@given(st.lists(st.tuples(SHARES, SENTENCES), min_size=1, max_size=30), st.randoms())
def test_only_the_order_of_scores_matters_and_not_that_of_the_answers(
    answers: list[tuple[float, SentenceScore]], shuffled: random.Random
) -> None:
    sentences = {str(place): sentence for place, (_, sentence) in enumerate(answers)}
    scores = {str(place): score for place, (score, _) in enumerate(answers)}
    curve = coverage_curve(scores, sentences)
    # A transform that keeps the order, ties included.
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores.values())))}
    other = [(name, ranks[score] / len(ranks)) for name, score in scores.items()]
    shuffled.shuffle(other)
    again = coverage_curve(dict(other), sentences)
    assert curve is not None and again is not None and curve[0].ciou == cumulative_iou(sentences.values())
    for each, same in zip(curve, again, strict=True):
        assert (each.coverage, each.n) == (same.coverage, same.n)
        assert (each.ciou, each.giou) == (pytest.approx(same.ciou), pytest.approx(same.giou))


def test_answers_of_one_score_make_a_flat_curve_and_an_answer_without_one_no_curve() -> None:
    sentences = {str(number): SentenceScore(number, 10, number / 10, True, True) for number in range(10)}
    flat = coverage_curve(dict.fromkeys(sentences, 0.5), sentences)
    assert flat is not None and all(each.ciou == pytest.approx(0.45) for each in flat)
    assert [each.n for each in flat] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert coverage_curve({**dict.fromkeys(sentences, 0.5), "3": None}, sentences) is None
    assert coverage_curve({}, {}) is None


def test_a_split_by_hand() -> None:
    samples = [sample("two", (0, 4), (6, 10)), sample("none"), sample("denied", (0, 4)), sample("failed", (0, 4))]
    lines = [
        line("two", (0, 4, 0.9), (0, 3, 0.7), (6, 8, 0.3)),  # the second finds no object left; the third has IoU 0.5
        line("none", score=0.8),
        line("denied", score=0.6),
        PredictionLine("failed", "error", error="no such file"),
    ]
    found = reliability_report(lines, score_sentences(lines, samples, dataset="grefcoco", split="val"))
    assert found.objects is not None and found.objects.n == 3
    assert found.objects.ece == pytest.approx((0.1 + 0.7 + 0.3) / 3)
    assert found.no_object is not None and found.no_object.ece == pytest.approx((0.2 + 0.6) / 2)
    # A failed query is last, with confidence 0.
    assert found.coverage is not None and found.coverage[0].score == 0 and len(found.coverage) == len(COVERAGES)


@pytest.mark.parametrize("missing", [None, 1.5])
def test_missing_scores_and_scores_beyond_1_give_no_figure(missing: float | None) -> None:
    samples, lines = [sample("a", (0, 4)), sample("b")], [line("a", (0, 4, missing), score=None), line("b", score=None)]
    assert reliability_report(
        lines, score_sentences(lines, samples, dataset="grefcoco", split="val")
    ) == ReliabilityReport(None, None, None)


def test_ignored_pixels_are_excluded_from_the_objects() -> None:
    samples, lines = [sample("a", (0, 4), ignore=(4, 10))], [line("a", (0, 10, 0.9))]
    assert score_sentences(lines, samples, dataset="reasonseg", split="val").correct == {"a": (True,)}


def test_the_plot_is_drawn_with_figures_and_without() -> None:
    sentences = {str(number): SentenceScore(number, 10, number / 10, True, True) for number in range(10)}
    curve = coverage_curve({name: int(name) / 10 for name in sentences}, sentences)
    lines = [line("a", (0, 4, 0.9))]
    full = ReliabilityReport(
        reliability_report(
            lines, score_sentences(lines, [sample("a", (0, 4))], dataset="grefcoco", split="val")
        ).objects,
        None,
        curve,
    )
    drawn, empty = (
        _plot_reliability(full, "a caption"),
        _plot_reliability(ReliabilityReport(None, None, None), "a caption"),
    )
    assert drawn.size == empty.size and drawn.tobytes() != empty.tobytes()
    assert _plot_reliability(full, "a caption").tobytes() == drawn.tobytes()
