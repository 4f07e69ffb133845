from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam4mllm.evaluate.metrics import (
    Overlap,
    SentenceScore,
    cumulative_iou,
    mean_iou,
    no_target_accuracy,
    overlap,
    precision_at,
    right_objects,
    target_accuracy,
)

MASKS = hnp.arrays(bool, (5, 7))


@given(MASKS, MASKS)
def test_overlap_counts_pixels(predicted: np.ndarray, truth: np.ndarray) -> None:
    pairs = list(zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert overlap(predicted, truth) == Overlap(sum(p and t for p, t in pairs), sum(p or t for p, t in pairs))


def test_masks_of_different_shapes_are_refused() -> None:
    # Numpy would broadcast these two.
    with pytest.raises(ValueError, match="one shape"):
        overlap(np.ones((1, 4), dtype=bool), np.ones((4, 4), dtype=bool))


def _judged(intersection: int, union: int) -> SentenceScore:
    return SentenceScore(intersection, union, intersection / union, True, True)


def test_ciou_weighs_by_area_and_giou_does_not() -> None:
    sentences = [_judged(1, 2), _judged(90, 100)]
    assert cumulative_iou(sentences) == pytest.approx(91 / 102)
    assert mean_iou(sentences) == pytest.approx((0.5 + 0.9) / 2)


def test_a_threshold_is_reached_by_equality() -> None:
    sentences = [_judged(7, 10), _judged(69, 100), _judged(9, 10)]
    assert precision_at(0.7, sentences) == pytest.approx(2 / 3)
    assert precision_at(0.9, sentences) == pytest.approx(1 / 3)


def test_accuracies_of_saying_whether_there_is_a_target() -> None:
    facts = [(True, True), (True, False), (True, True), (False, False), (False, True)]
    sentences = [SentenceScore(0, 0, 0.0, targeted, answered) for targeted, answered in facts]
    assert target_accuracy(sentences) == pytest.approx(2 / 3)
    assert no_target_accuracy(sentences) == pytest.approx(1 / 2)


def test_a_figure_over_nothing_is_none() -> None:
    assert cumulative_iou([SentenceScore(0, 0, 1.0, False, False)]) is None
    assert mean_iou([]) is None
    assert precision_at(0.7, []) is None
    assert no_target_accuracy([_judged(1, 2)]) is None
    assert target_accuracy([SentenceScore(0, 0, 1.0, False, False)]) is None


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1), st.randoms())
def test_no_figure_depends_on_the_order(counts: list[tuple[int, int]], rng: random.Random) -> None:
    sentences = [_judged(min(pair), max(pair)) for pair in counts]
    mixed = rng.sample(sentences, len(sentences))
    assert (cumulative_iou(mixed), mean_iou(mixed)) == (cumulative_iou(sentences), mean_iou(sentences))


def _span(first: int, last: int) -> np.ndarray:
    mask = np.zeros((1, 12), dtype=bool)
    mask[:, first:last] = True
    return mask


def test_right_objects_are_one_to_one_by_iou_and_above_a_half() -> None:
    truth = [_span(0, 4), _span(6, 10)]
    assert right_objects([_span(0, 3), _span(0, 4), _span(6, 8)], truth) == (False, True, False)
    assert right_objects([_span(6, 9), _span(0, 4)], truth) == (True, True)
    assert right_objects([_span(0, 4), _span(0, 4)], truth) == (True, False)
    assert right_objects([_span(0, 4)], []) == (False,) and right_objects([], truth) == ()
    assert right_objects([_span(0, 8)], truth[:1], _span(4, 12)) == (True,)


@given(st.lists(MASKS, max_size=4), st.lists(MASKS, max_size=4))
def test_no_more_objects_are_right_than_are_meant(predicted: list[np.ndarray], truth: list[np.ndarray]) -> None:
    right = right_objects(predicted, truth)
    assert len(right) == len(predicted) and sum(right) <= len(truth)
    assert not any(fact and not mask.any() for fact, mask in zip(right, predicted, strict=True))
