"""The box's fallback: when the mask of the box alone is taken, and that its price is paid only where it can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.pipeline.loading import box_fallback
from sam4mllm.recipe.schema import SegmenterSection
from sam4mllm.segmenters.fallback import BoxFallback, segment_with_fallback, share_outside
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from tests.segmenters.fakes import MisledSegmenter

BOX = Box(10, 10, 30, 20)
POINTED = SamPrompt(BOX, (Point(12.5, 12.5, 1), Point(2.5, 2.5, 0)))
FRACTIONS = st.floats(0, 1)


@pytest.mark.parametrize(
    ("fallback", "outside", "iou", "box_iou", "takes"),
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
        # What half precision can make of a predicted IoU is told of elsewhere; it takes nothing by itself.
        (BoxFallback(margin=0), 0.0, float("nan"), 1.0, False),
    ],
)
def test_the_rule(fallback: BoxFallback, outside: float, iou: float, box_iou: float, takes: bool) -> None:
    assert fallback.takes_box(outside, iou, box_iou) == takes


@given(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS)
def test_a_looser_fallback_takes_no_box_that_a_stricter_one_leaves(
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
def test_what_is_no_fraction_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions from 0 to 1"):
        BoxFallback(**given)


def test_a_recipes_section_says_it_and_by_default_says_never() -> None:
    assert not box_fallback(SegmenterSection(checkpoint="shapes")).enabled
    section = SegmenterSection(checkpoint="shapes", fallback_margin=0.05, fallback_outside=0.0)
    assert box_fallback(section) == BoxFallback(0.05, 0.0) and box_fallback(section).enabled


@pytest.mark.parametrize(
    ("columns", "share"), [((10, 30), 0.0), ((0, 30), 1 / 3), ((0, 10), 1.0), ((30, 40), 1.0), ((0, 0), 0.0)]
)
def test_the_share_outside_counts_the_masks_pixels(columns: tuple[int, int], share: float) -> None:
    mask = torch.zeros((25, 40), dtype=torch.bool)
    mask[10:20, columns[0] : columns[1]] = True
    assert share_outside(mask, BOX) == pytest.approx(share)


def test_each_request_gets_its_own_mask_in_its_place() -> None:
    segmenter = MisledSegmenter()
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)] * 2)
    within = SamPrompt(BOX, (Point(12.5, 12.5, 1),))
    requests = [(0, SamPrompt(BOX)), (1, POINTED), (0, within), (0, SamPrompt(None, POINTED.points)), (0, POINTED)]
    masks, ious, alone = segment_with_fallback(segmenter, embeddings, requests, BoxFallback(margin=0.05))
    assert alone == (False, True, False, False, True)
    assert ious.tolist() == pytest.approx([0.9, 0.9, 0.95, 0.6, 0.9])
    assert torch.equal(masks[1], masks[0]) and torch.equal(masks[4], masks[0]) and int(masks[0].sum()) == 200
    # One call decodes all: those with points once more without them.
    assert segmenter.decoded == [8]


def test_a_mask_that_leaves_its_box_is_replaced_whatever_sam_thinks_of_it() -> None:
    segmenter = MisledSegmenter(pointed_iou=0.99)
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)])
    for outside, taken in ((0.1, True), (0.95, False)):
        masks, _, alone = segment_with_fallback(segmenter, embeddings, [(0, POINTED)], BoxFallback(outside=outside))
        assert alone == (taken,) and (int(masks[0].sum()) == 200) == taken


def test_no_request_is_no_mask() -> None:
    segmenter = MisledSegmenter()
    embeddings = segmenter.embed([np.zeros((40, 60, 3), dtype=np.uint8)])
    masks, ious, alone = segment_with_fallback(segmenter, embeddings, [], BoxFallback(margin=0))
    assert masks == [] and ious.shape == (0,) and alone == ()


def test_with_sam_a_mask_is_the_one_or_the_other() -> None:
    segmenter = SegmentAnything(tiny_sam())
    embeddings = segmenter.embed([np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)])

    def masks_of(prompts: Sequence[SamPrompt]) -> list[torch.Tensor]:
        return segmenter.masks(segmenter.decode(embeddings, [(0, prompt) for prompt in prompts]))

    pointed, alone = masks_of([POINTED, SamPrompt(BOX)])
    never, _, kept = segment_with_fallback(segmenter, embeddings, [(0, POINTED)], BoxFallback(margin=1))
    assert kept == (False,) and torch.equal(never[0], pointed)
    share = share_outside(pointed, BOX)
    assert share > 0
    always, _, taken = segment_with_fallback(segmenter, embeddings, [(0, POINTED)], BoxFallback(outside=share / 2))
    assert taken == (True,) and torch.equal(always[0], alone)
