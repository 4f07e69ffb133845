"""Boxes, prompts and grids by tables; ResizedGrid gives the size that transformers' image processor resizes to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, Grid, Point, ResizedGrid, SamPrompt, box_of_mask, mask_of_box

sides = st.integers(1, 5000)


@given(sides, sides, st.sampled_from([28, 32]), st.integers(1, 40), st.integers(0, 40_000))
def test_a_resized_grid_follows_transformers_rule(width, height, multiple, least, more):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    bounds = {"min_pixels": least * 784, "max_pixels": max(least * 784, multiple**2) + more * 784}
    grid = ResizedGrid(multiple, **bounds)
    try:
        rows, columns = smart_resize(height, width, factor=multiple, **bounds)
    except ValueError:
        with pytest.raises(DataError, match="at most 200 times"):
            grid.of_image((width, height))
    else:
        assert grid.of_image((width, height)).bins_wh == (columns, rows)


@pytest.mark.parametrize("bounds", [(0, 1, 9), (28, 1, 783), (28, 0, 800), (28, 900, 800)])
def test_bounds_without_a_possible_size_are_refused(bounds):
    message = "^a resized image has 1 <= min_pixels <= max_pixels and room for one multiple on each axis; got multiple="
    with pytest.raises(ValueError, match=message):
        ResizedGrid(*bounds)


def test_bounds_may_allow_one_size_alone():
    assert ResizedGrid(28, 784, 784).of_image((640, 480)) == Grid((28, 28))


def test_a_size_of_exactly_the_least_pixels_is_kept():
    assert ResizedGrid(28, 56 * 28, 50176).of_image((60, 40)) == Grid((56, 28))
    assert ResizedGrid(28, 56 * 28 + 1, 50176).of_image((60, 40)) == Grid((56, 56))


@pytest.mark.parametrize(
    ("size_wh", "of_28", "of_10"),
    [
        ((640, 480), (252, 168), (110, 80)),
        ((480, 640), (168, 252), (80, 110)),
        ((100, 100), (112, 112), (100, 100)),
        ((28, 28), (56, 56), (30, 30)),
        ((30, 500), (28, 504), (20, 400)),
        ((224, 224), (224, 224), (100, 100)),
        ((3000, 40), (1932, 28), (860, 10)),
        ((33, 77), (56, 112), (30, 80)),
        ((14, 14), (56, 56), (10, 10)),
        ((105, 95), (112, 84), (100, 100)),
    ],
)
def test_sizes_of_resized_images_without_a_bound_at_the_least_and_at_the_most_pixels(size_wh, of_28, of_10):
    assert ResizedGrid(28, 3136, 50176).of_image(size_wh) == Grid(of_28)
    assert ResizedGrid(10, 100, 10_000).of_image(size_wh) == Grid(of_10)


BOX = Box(2, 1, 8, 5)


@pytest.mark.parametrize(
    ("box", "width", "height", "area"),
    [
        (BOX, 6, 4, 24),
        (Box(3, 3, 3, 9), 0, 6, 0),
        (Box(5, 5, 3, 9), -2, 4, 0),
        (Box(3, 9, 7, 5), 4, -4, 0),
        (Box(9, 9, 3, 3), -6, -6, 0),
        (Box(0.25, 0.5, 0.75, 0.75), 0.5, 0.25, 0.125),
    ],
)
def test_sides_and_area_of_a_box(box, width, height, area):
    assert (box.width, box.height, box.area) == (width, height, area)


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        (BOX, 1.0),
        (Box(5, 1, 11, 5), 12 / 36),
        (Box(2, 3, 8, 7), 12 / 36),
        (Box(4, 2, 6, 4), 4 / 24),
        (Box(8, 1, 14, 5), 0.0),
        (Box(2, 5, 8, 9), 0.0),
        (Box(20, 20, 30, 30), 0.0),
        (Box(2, 1, 2, 5), 0.0),
        (Box(2.5, 1, 2.75, 1.25), 0.0625 / 24),
    ],
)
def test_iou_is_intersection_over_union_in_both_orders(other, iou):
    assert BOX.iou(other) == pytest.approx(iou) == other.iou(BOX)


def test_iou_of_two_boxes_without_extent_is_zero():
    assert Box(3, 3, 3, 3).iou(Box(3, 3, 3, 3)) == 0.0
    assert Box(0, 0, 0.5, 0.5).iou(Box(0, 0, 0.5, 0.5)) == 1.0


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (BOX, BOX),
        (Box(-3, -2, 30, 40), Box(0, 0, 20, 10)),
        (Box(-9, -8, -3, -2), Box(0, 0, 0, 0)),
        (Box(25, 15, 30, 40), Box(20, 10, 20, 10)),
        (Box(0.5, 0.25, 19.5, 9.75), Box(0.5, 0.25, 19.5, 9.75)),
    ],
)
def test_a_box_is_clipped_to_its_image(box, clipped):
    assert box.clip((20, 10)) == clipped


def test_a_box_is_widened_by_a_share_of_each_side_within_the_image():
    assert BOX.widen(0.25, (100, 100)) == Box(0.5, 0, 9.5, 6)
    assert BOX.widen(1, (13, 7)) == Box(0, 0, 13, 7)
    assert BOX.widen(0, (100, 100)) == BOX


@pytest.mark.parametrize(
    ("box", "points", "message"),
    [
        (None, (), "^a SAM prompt needs a box or at least one point; got neither$"),
        (Box(0, 0, float("nan"), 1), (), r"^box coordinates must be finite; got \(0, 0, nan, 1\)$"),
        (Box(float("-inf"), 0, 1, 1), (), "^box coordinates must be finite"),
        (Box(2, 0, 1, 1), (), r"^a box is \(x1 <= x2, y1 <= y2\); got \(2, 0, 1, 1\)$"),
        (Box(0, 2, 1, 1), (), r"^a box is \(x1 <= x2, y1 <= y2\); got \(0, 2, 1, 1\)$"),
        (None, (Point(float("inf"), 0, 1),), r"^point coordinates must be finite; got \(inf, 0, 1\)$"),
        (None, (Point(0, float("nan"), 1),), "^point coordinates must be finite"),
        (BOX, (Point(0, 0, 1), Point(0, 0, 2)), r"^a point label is 1 \(positive\) or 0 \(negative\); got 2$"),
        (BOX, (Point(0, 0, -1),), "^a point label is"),
    ],
)
def test_an_impossible_prompt_is_refused(box, points, message):
    with pytest.raises(ValueError, match=message):
        SamPrompt(box, points)


def test_a_prompt_separates_its_points_by_label_in_their_order():
    points = (Point(1, 1, 1), Point(2, 2, 0), Point(3, 3, 1), Point(4, 4, 0))
    prompt = SamPrompt(None, points)
    assert prompt.positives == (points[0], points[2]) and prompt.negatives == (points[1], points[3])
    assert SamPrompt(Box(3, 3, 3, 3)).points == ()


@pytest.mark.parametrize(
    ("x", "y", "bins"),
    [
        (0, 0, (0, 0)),
        (63.9, 47.9, (0, 0)),
        (64, 48, (1, 1)),
        (639.9, 479.9, (9, 9)),
        (640, 480, (9, 9)),
        (-5, -5, (0, 0)),
        (700, 10, (9, 0)),
        (10, 700, (0, 9)),
    ],
)
def test_a_coordinate_is_in_a_half_open_bin_and_the_far_edge_in_the_last_one(x, y, bins):
    assert Grid((10, 10)).to_bins(x, y, (640, 480)) == bins


def test_a_bin_is_parsed_as_its_center_on_each_axis():
    grid = Grid((10, 5))
    assert grid.to_pixels(0, 0, (640, 480)) == (32, 48) and grid.to_pixels(9, 4, (640, 480)) == (608, 432)
    assert grid.of_image((3, 4)) is grid and Grid().bins_wh == (1000, 1000)


@pytest.mark.parametrize("bins_wh", [(0, 5), (5, 0), (-1, 5)])
def test_a_grid_without_bins_is_refused(bins_wh):
    with pytest.raises(ValueError, match=r"^a grid has at least one bin on each axis; got \("):
        Grid(bins_wh)
    assert Grid((1, 1)).to_bins(3, 3, (9, 9)) == (0, 0)


def test_an_image_is_refused_beyond_the_aspect_ratio_of_the_processors_and_not_at_it():
    grid = ResizedGrid(1, 1, 10**9)
    assert grid.of_image((200, 1)).bins_wh == (200, 1)
    with pytest.raises(DataError, match=r"^an image of 1 x 201 pixels: .* at most 200 times the other; crop it$"):
        grid.of_image((1, 201))


def test_the_box_of_a_mask_is_tight_and_exclusive_at_its_far_corner():
    mask = np.zeros((6, 9), dtype=bool)
    assert box_of_mask(mask) is None
    mask[2, 3] = True
    assert box_of_mask(mask) == Box(3, 2, 4, 3)
    mask[4, 7] = True
    assert box_of_mask(mask) == Box(3, 2, 8, 5)


def test_the_mask_of_a_box_has_the_pixels_whose_centers_are_inside():
    assert np.argwhere(mask_of_box(Box(1.5, 0.5, 3.5, 1.5), (5, 3))).tolist() == [[0, 1], [0, 2]]
    assert np.argwhere(mask_of_box(Box(1.6, 0.6, 3.6, 2.4), (5, 3))).tolist() == [[1, 2], [1, 3]]
    assert mask_of_box(Box(0, 0, 5, 3), (5, 3)).all() and not mask_of_box(Box(2, 1, 2, 1), (5, 3)).any()
