"""Areas counted in RLEs, beside those of the decoded masks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sam4mllm.data.masks import Rle, check_rle, decode, encode
from sam4mllm.evaluation.areas import Areas, areas_of, correct_rles, mergeable
from sam4mllm.evaluation.metrics import Mask, Overlap, correct_objects, overlap, union_of

SIZE_WH = (6, 5)


@st.composite
def rles(draw: st.DrawFn) -> Rle:
    """An RLE of 6 x 5 pixels as a file may hold it, also with runs of no pixel."""
    cuts = sorted(draw(st.lists(st.integers(0, 30), max_size=9)))
    return check_rle({"size": [5, 6], "counts": [b - a for a, b in pairwise([0, *cuts, 30])]})


def _decoded(masks: list[Rle]) -> list[Mask]:
    return [decode(mask) for mask in masks]


@settings(max_examples=200, deadline=None)
@given(st.lists(rles(), max_size=3), st.lists(rles(), max_size=3), st.none() | rles())
def test_areas_and_matches_are_those_of_the_decoded_masks(
    predicted: list[Rle], truth: list[Rle], ignored: Rle | None
) -> None:
    kept = np.ones((5, 6), dtype=bool) if ignored is None else ~decode(ignored)
    ours, theirs = (union_of(_decoded(masks), SIZE_WH) & kept for masks in (predicted, truth))
    merged = (
        [mergeable(mask) for mask in predicted],
        [mergeable(mask) for mask in truth],
        ignored and mergeable(ignored),
    )
    areas = areas_of(*merged)
    assert areas == (ours.sum(), theirs.sum(), (ours & theirs).sum())
    assert areas.overlap == overlap(ours, theirs)
    expected = correct_objects(_decoded(predicted), _decoded(truth), None if ignored is None else ~kept)
    assert correct_rles(*merged) == expected


def test_areas_of_no_mask() -> None:
    full = encode(np.ones((5, 6), dtype=bool))
    assert areas_of([], [full]) == Areas(0, 30, 0) and areas_of([full], []) == Areas(30, 0, 0)
    assert areas_of([], []).overlap == Overlap(0, 0)


def test_a_mask_with_a_run_of_no_pixel_is_encoded_again() -> None:
    usual, unusual = (check_rle({"size": [2, 5], "counts": counts}) for counts in ([5, 2, 3], [5, 0, 0, 2, 3]))
    assert mergeable(usual) is usual
    assert mergeable(unusual) == usual != unusual
    merged = coco.merge([{**unusual, "counts": unusual["counts"].encode()}] * 2, intersect=True)
    assert coco.area(merged) == 0, "merge must end at such a run, or mergeable is not needed"


def test_runs_that_begin_with_a_pixel_are_merged_as_they_are() -> None:
    first = encode(np.ones((2, 5), dtype=bool))
    assert mergeable(first) is first


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_pair_is_correct_above_a_half(count: int) -> None:
    half, full = np.zeros((2, 4), dtype=bool), np.ones((2, 4), dtype=bool)
    half[:, : 2 + count - 1] = True
    assert correct_rles([encode(half)], [encode(full)]) == (count == 2,)
