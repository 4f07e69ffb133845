"""The fallback to the box's mask: its rules, and the masks and predicted IoUs that it returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.pipeline.plan import box_fallback
from sam4mllm.recipe.schema import SegmenterSection
from sam4mllm.segmenters.fallback import BoxFallback, segment_with_fallback, share_outside
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from tests.segmenters.fakes import MisledSegmenter

BOX = Box(10, 10, 30, 20)
BOX_AND_POINTS = SamPrompt(BOX, (Point(12.5, 12.5, 1), Point(2.5, 2.5, 0)))
FRACTIONS = st.floats(0, 1)


@pytest.mark.parametrize(
    ("fallback", "outside", "iou", "box_iou", "expected"),
    [
        (BoxFallback(), 1.0, 0.0, 1.0, False),
        (BoxFallback(margin=0.25), 1.0, 0.5, 0.75, False),
        (BoxFallback(margin=0.25), 0.0, 0.5, 0.875, True),
        (BoxFallback(margin=0.25), 0.0, 0.75, 0.5, False),
        (BoxFallback(margin=0), 0.0, 0.5, 0.5, False),
        (BoxFallback(margin=0), 0.0, 0.5, 0.5001, True),
        (BoxFallback(outside=0.1), 0.1, 0.0, 1.0, False),
        (BoxFallback(outside=0.1), 0.11, 1.0, 0.0, True),
        (BoxFallback(outside=0), 0.0, 0.0, 1.0, False),
        (BoxFallback(margin=0.25, outside=0.1), 0.2, 1.0, 0.0, True),
        (BoxFallback(margin=0.25, outside=0.1), 0.0, 0.5, 0.875, True),
        (BoxFallback(margin=0.25, outside=0.1), 0.0, 0.5, 0.625, False),
        # A predicted IoU can be NaN in half precision; the rule does not use the box then.
        (BoxFallback(margin=0), 0.0, float("nan"), 1.0, False),
    ],
)
def test_the_rules_decide_by_margin_and_share_outside(
    fallback: BoxFallback, outside: float, iou: float, box_iou: float, expected: bool
) -> None:
    assert fallback.takes_box(outside, iou, box_iou) == expected


@given(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS)
def test_a_stricter_fallback_uses_the_box_wherever_a_looser_one_does(
    low: float, high: float, outside: float, iou: float, box_iou: float
) -> None:
    low, high = min(low, high), max(low, high)
    for loose, strict in (
        (BoxFallback(margin=high), BoxFallback(margin=low)),
        (BoxFallback(outside=high), BoxFallback(outside=low)),
        (BoxFallback(margin=low), BoxFallback(margin=low, outside=high)),
        (BoxFallback(), BoxFallback(margin=high, outside=high)),
    ):
        assert strict.takes_box(outside, iou, box_iou) >= loose.takes_box(outside, iou, box_iou)


@pytest.mark.parametrize("given", [{"margin": -0.1}, {"outside": 1.1}, {"margin": float("nan")}])
def test_values_that_are_not_fractions_raise_an_error(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions from 0 to 1"):
        BoxFallback(**given)


def test_a_recipe_turns_the_fallback_on_and_the_default_is_off() -> None:
    assert not box_fallback(SegmenterSection(checkpoint="shapes")).enabled
    section = SegmenterSection(checkpoint="shapes", fallback_margin=0.05, fallback_outside=0.0)
    assert box_fallback(section) == BoxFallback(0.05, 0.0) and box_fallback(section).enabled


@pytest.mark.parametrize(
    ("columns", "share"), [((10, 30), 0.0), ((0, 30), 1 / 3), ((0, 10), 1.0), ((30, 40), 1.0), ((0, 0), 0.0)]
)
def test_the_share_outside_is_of_the_masks_pixels(columns: tuple[int, int], share: float) -> None:
    mask = torch.zeros((25, 40), dtype=torch.bool)
    mask[10:20, columns[0] : columns[1]] = True
    assert share_outside(mask, BOX) == pytest.approx(share)


def test_each_request_gets_its_own_mask_at_its_position() -> None:
    segmenter = MisledSegmenter()
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)] * 2)
    positive_only = SamPrompt(BOX, (Point(12.5, 12.5, 1),))
    requests = [
        (0, SamPrompt(BOX)),
        (1, BOX_AND_POINTS),
        (0, positive_only),
        (0, SamPrompt(None, BOX_AND_POINTS.points)),
        (0, BOX_AND_POINTS),
    ]
    masks, ious, box_only = segment_with_fallback(segmenter, embeddings, requests, BoxFallback(margin=0.05))
    assert box_only == (False, True, False, False, True)
    assert ious.tolist() == pytest.approx([0.9, 0.9, 0.95, 0.6, 0.9])
    assert torch.equal(masks[1], masks[0]) and torch.equal(masks[4], masks[0]) and int(masks[0].sum()) == 200
    # One call decodes all: five requests, and the three with box and points once more without points.
    assert segmenter.decoded == [8]


def test_a_mask_outside_its_box_is_replaced_whatever_iou_sam_predicts() -> None:
    segmenter = MisledSegmenter(pointed_iou=0.99)
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)])
    for outside, expected in ((0.1, True), (0.95, False)):
        masks, _, box_only = segment_with_fallback(
            segmenter, embeddings, [(0, BOX_AND_POINTS)], BoxFallback(outside=outside)
        )
        assert box_only == (expected,) and (int(masks[0].sum()) == 200) == expected


def test_no_requests_give_no_masks() -> None:
    segmenter = MisledSegmenter()
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)])
    masks, ious, box_only = segment_with_fallback(segmenter, embeddings, [], BoxFallback(margin=0))
    assert masks == [] and ious.shape == (0,) and box_only == ()


def test_with_sam_the_result_is_one_of_both_masks() -> None:
    segmenter = SegmentAnything(tiny_sam())
    embeddings = segmenter.embed([np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)])

    def masks_of(prompts: Sequence[SamPrompt]) -> list[torch.Tensor]:
        return segmenter.masks(segmenter.decode(embeddings, [(0, prompt) for prompt in prompts]))

    pointed, boxed = masks_of([BOX_AND_POINTS, SamPrompt(BOX)])
    never, _, kept = segment_with_fallback(segmenter, embeddings, [(0, BOX_AND_POINTS)], BoxFallback(margin=1))
    assert kept == (False,) and torch.equal(never[0], pointed)
    share = share_outside(pointed, BOX)
    assert share > 0
    always, _, taken = segment_with_fallback(
        segmenter, embeddings, [(0, BOX_AND_POINTS)], BoxFallback(outside=share / 2)
    )
    assert taken == (True,) and torch.equal(always[0], boxed)
