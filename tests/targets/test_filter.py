"""Selection of targets: groups that beat the box are kept, and the box replaces points if there are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.filter import keep_winning_groups, points_beat_box, select_targets
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.store import ObjectTarget
from tests.targets.examples import SETTINGS, make_samples

BOX = Box(2, 3, 30, 20)


def make_target(ious: list[float], box_iou: float) -> ObjectTarget:
    """Return a target with groups of one point each, the first at x = 0."""
    prompts = tuple(SamPrompt(BOX, (Point(float(group), 5.5, 1),)) for group in range(len(ious)))
    return ObjectTarget("a", "hash", prompts, tuple(ious), box_iou, 0.5, 0.1)


@pytest.mark.parametrize(
    ("ious", "box_iou", "kept"),
    [
        ([0.9], 0.8, [0]),
        ([0.8], 0.9, []),
        # An equal IoU does not beat the box.
        ([0.9], 0.9, []),
        ([0.9, 0.8, 0.7], 0.75, [0, 1]),
        ([0.9, 0.8, 0.7], 0.95, []),
        # Groups chosen at random are not sorted by IoU.
        ([0.7, 0.9, 0.8], 0.75, [1, 2]),
    ],
)
def test_only_groups_that_beat_the_box_are_kept(ious: list[float], box_iou: float, kept: list[int]) -> None:
    target = make_target(ious, box_iou)
    selected = keep_winning_groups(target)
    assert points_beat_box(target) == bool(kept)
    if kept:
        assert [prompt.points[0].x for prompt in selected.prompts] == kept
        assert selected.ious == tuple(ious[group] for group in kept)
    else:
        assert selected.prompts == (SamPrompt(BOX),) and selected.ious == (box_iou,)
    assert (selected.box_iou, selected.mean_iou, selected.std_iou) == (box_iou, 0.5, 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1))
def test_selected_targets_have_a_prompt_and_are_never_worse_than_the_box(ious: list[float], box_iou: float) -> None:
    selected = keep_winning_groups(make_target(ious, box_iou))
    assert selected.prompts and len(selected.prompts) == len(selected.ious)
    assert all(iou >= box_iou for iou in selected.ious)
    assert all(prompt.box == BOX for prompt in selected.prompts)
    assert keep_winning_groups(selected) == selected


def test_without_only_winning_targets_are_used_as_stored() -> None:
    targets = {"wins": make_target([0.9], 0.8), "loses": make_target([0.8], 0.9)}
    assert select_targets(targets, only_winning=False) == targets
    selected = select_targets(targets, only_winning=True)
    assert list(selected) == ["wins", "loses"]
    assert [bool(target.prompts[0].points) for target in selected.values()] == [True, False]


def test_points_that_do_not_change_the_mask_do_not_beat_the_box(tmp_path) -> None:  # type: ignore[no-untyped-def]
    samples = make_samples(tmp_path / "images", images=1)
    ignoring = compute_targets(samples, BoxSegmenter(), SETTINGS, tmp_path / "store").read()
    assert not any(map(points_beat_box, ignoring.values()))
    # A negative point removes pixels near a corner of the box, which are off the disc, too.
    using = compute_targets(samples, BoxSegmenter(points_cut=True), SETTINGS, tmp_path / "store").read()
    assert all(map(points_beat_box, using.values()))
