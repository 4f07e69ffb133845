from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam4mllm.evaluation.metrics import (
    Overlap,
    SentenceScore,
    correct_objects,
    cumulative_iou,
    match_greedily,
    mean_iou,
    no_target_accuracy,
    overlap,
    precision_at,
    share,
    target_accuracy,
    union_of,
)

MASKS = hnp.arrays(bool, (5, 7))


@given(MASKS, MASKS)
def test_overlap_counts_pixels(predicted: np.ndarray, truth: np.ndarray) -> None:
    pairs = list(zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert overlap(predicted, truth) == Overlap(sum(p and t for p, t in pairs), sum(p or t for p, t in pairs))


def test_masks_of_different_shapes_are_refused() -> None:
    # Numpy would broadcast these two.
    with pytest.raises(ValueError, match=r"^masks of one image have one shape; got \(1, 4\) and \(4, 4\) \(H, W\)$"):
        overlap(np.ones((1, 4), dtype=bool), np.ones((4, 4), dtype=bool))


def _sentence(intersection: int, union: int) -> SentenceScore:
    return SentenceScore(intersection, union, intersection / union, True, True)


def test_ciou_is_weighted_by_area_and_giou_is_not() -> None:
    sentences = [_sentence(1, 2), _sentence(90, 100)]
    assert cumulative_iou(sentences) == pytest.approx(91 / 102)
    assert mean_iou(sentences) == pytest.approx((0.5 + 0.9) / 2)


def test_a_threshold_is_reached_by_equality() -> None:
    sentences = [_sentence(7, 10), _sentence(69, 100), _sentence(9, 10)]
    assert precision_at(0.7, sentences) == pytest.approx(2 / 3)
    assert precision_at(0.9, sentences) == pytest.approx(1 / 3)


def test_target_and_no_target_accuracy() -> None:
    facts = [(True, True), (True, False), (True, True), (False, False), (False, True), (False, False)]
    sentences = [SentenceScore(0, 0, 0.0, targeted, answered) for targeted, answered in facts]
    assert target_accuracy(sentences) == pytest.approx(2 / 3)
    assert no_target_accuracy(sentences) == pytest.approx(2 / 3)


def test_a_metric_of_no_sentence_is_none() -> None:
    assert cumulative_iou([SentenceScore(0, 0, 1.0, False, False)]) is None
    assert mean_iou([]) is None
    assert precision_at(0.7, []) is None
    assert no_target_accuracy([_sentence(1, 2)]) is None
    assert target_accuracy([SentenceScore(0, 0, 1.0, False, False)]) is None


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1), st.randoms())
def test_no_metric_depends_on_the_order(counts: list[tuple[int, int]], rng: random.Random) -> None:
    sentences = [_sentence(min(pair), max(pair)) for pair in counts]
    mixed = rng.sample(sentences, len(sentences))
    assert (cumulative_iou(mixed), mean_iou(mixed)) == (cumulative_iou(sentences), mean_iou(sentences))


def _span(first: int, last: int) -> np.ndarray:
    mask = np.zeros((1, 12), dtype=bool)
    mask[:, first:last] = True
    return mask


def test_correct_objects_are_matched_one_to_one_with_iou_above_a_half() -> None:
    truth = [_span(0, 4), _span(6, 10)]
    assert correct_objects([_span(0, 3), _span(0, 4), _span(6, 8)], truth) == (False, True, False)
    assert correct_objects([_span(6, 9), _span(0, 4)], truth) == (True, True)
    assert correct_objects([_span(0, 4), _span(0, 4)], truth) == (True, False)
    assert correct_objects([_span(0, 4)], []) == (False,) and correct_objects([], truth) == ()
    assert correct_objects([_span(0, 8)], truth[:1], _span(4, 12)) == (True,)
    assert correct_objects([_span(0, 8)], [_span(0, 9)], _span(2, 12)) == (True,)
    assert correct_objects([_span(0, 2)], [_span(0, 9)], _span(2, 12)) == (True,)
    assert correct_objects([_span(0, 1)], [_span(0, 9)], _span(2, 12)) == (False,)


@given(st.lists(MASKS, max_size=4), st.lists(MASKS, max_size=4))
def test_no_more_objects_are_correct_than_are_annotated(predicted: list[np.ndarray], truth: list[np.ndarray]) -> None:
    correct = correct_objects(predicted, truth)
    assert len(correct) == len(predicted) and sum(correct) <= len(truth)
    assert not any(fact and not mask.any() for fact, mask in zip(correct, predicted, strict=True))


def test_pairs_are_matched_by_iou_then_by_their_numbers() -> None:
    assert match_greedily([(0.6, 0, 0), (0.9, 0, 1), (0.8, 1, 1), (0.7, 1, 0)], above=0.5) == {0: 1, 1: 0}
    assert match_greedily([(0.7, 1, 0), (0.7, 0, 0)], above=0.5) == {0: 0}
    assert match_greedily([(0.7, 0, 1), (0.7, 0, 0)], above=0.5) == {0: 0}
    assert match_greedily([(0.5, 0, 0)], above=0.5) == {} and match_greedily([(0.51, 0, 0)], above=0.5) == {0: 0}


def test_the_union_of_masks_and_of_none() -> None:
    assert union_of([], (3, 2)).shape == (2, 3) and not union_of([], (3, 2)).any()
    first, second = _span(0, 2), _span(4, 5)
    assert union_of([first, second], (12, 1)).tolist() == (first | second).tolist()
    assert first.sum() == 2


def test_the_iou_of_two_empty_masks_is_zero_and_shares_are_of_all_values() -> None:
    assert Overlap(0, 0).iou == 0.0 and Overlap(1, 4).iou == 0.25
    assert share([True, False, False, True]) == 0.5 and share([]) is None
