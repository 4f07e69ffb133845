"""Points where they win: what is taught of targets whose points beat the box, and of those whose points do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.filter import points_beat_box, select_targets, winning
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.store import ObjectTarget
from tests.targets.examples import SETTINGS, make_samples

BOX = Box(2, 3, 30, 20)


def make_target(ious: list[float], box_iou: float) -> ObjectTarget:
    """A target whose groups are one point each, the first group's at x = 0."""
    prompts = tuple(SamPrompt(BOX, (Point(float(place), 5.5, 1),)) for place in range(len(ious)))
    return ObjectTarget("a", prompts, tuple(ious), box_iou, 0.5, 0.1)


@pytest.mark.parametrize(
    ("ious", "box_iou", "kept"),
    [
        ([0.9], 0.8, [0]),
        ([0.8], 0.9, []),
        # As good as the box is not better.
        ([0.9], 0.9, []),
        ([0.9, 0.8, 0.7], 0.75, [0, 1]),
        ([0.9, 0.8, 0.7], 0.95, []),
        # Groups taken at random have no order.
        ([0.7, 0.9, 0.8], 0.75, [1, 2]),
    ],
)
def test_only_the_groups_that_beat_the_box_are_taught(ious: list[float], box_iou: float, kept: list[int]) -> None:
    target = make_target(ious, box_iou)
    found = winning(target)
    assert points_beat_box(target) == bool(kept)
    if kept:
        assert [prompt.points[0].x for prompt in found.prompts] == kept
        assert found.ious == tuple(ious[place] for place in kept)
    else:
        assert found.prompts == (SamPrompt(BOX),) and found.ious == (box_iou,)
    assert (found.box_iou, found.mean_iou, found.std_iou) == (box_iou, 0.5, 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1))
def test_what_is_taught_is_never_worse_than_the_box_and_has_a_prompt(ious: list[float], box_iou: float) -> None:
    found = winning(make_target(ious, box_iou))
    assert found.prompts and len(found.prompts) == len(found.ious)
    assert all(iou >= box_iou for iou in found.ious)
    assert all(prompt.box == BOX for prompt in found.prompts)
    assert winning(found) == found


def test_without_the_setting_all_is_taught_as_it_is_stored() -> None:
    targets = {"wins": make_target([0.9], 0.8), "loses": make_target([0.8], 0.9)}
    assert select_targets(targets, only_winning=False) == targets
    taught = select_targets(targets, only_winning=True)
    assert list(taught) == ["wins", "loses"]
    assert [bool(target.prompts[0].points) for target in taught.values()] == [True, False]


def test_points_that_change_nothing_are_not_taught(tmp_path) -> None:  # type: ignore[no-untyped-def]
    samples = make_samples(tmp_path / "images", images=1)
    blind = compute_targets(samples, BoxSegmenter(), SETTINGS, tmp_path / "store").read()
    assert not any(map(points_beat_box, blind.values()))
    # Points off a disc cut a corner of its box away, which is off the disc, too.
    seeing = compute_targets(samples, BoxSegmenter(points_cut=True), SETTINGS, tmp_path / "store").read()
    assert all(map(points_beat_box, seeing.values()))
