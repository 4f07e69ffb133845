"""Drawings over images: tints, outlines, boxes and points at the right pixels, panels and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.viz.drawing import (
    NEGATIVE_COLOR,
    PALETTE,
    POSITIVE_COLOR,
    contact_sheet,
    mask_image,
    overlay,
    panels,
)

BLACK = np.zeros((40, 60, 3), dtype=np.uint8)


def square_mask() -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    return mask


def test_a_mask_is_tinted_inside_and_outlined_at_its_edge_and_other_pixels_are_unchanged() -> None:
    drawn = np.asarray(overlay(BLACK, [square_mask()], opacity=0.5))
    assert drawn.shape == (40, 60, 3)
    assert tuple(drawn[20, 35]) == tuple(round(value * 0.5) for value in PALETTE[0])
    assert tuple(drawn[10, 20]) == PALETTE[0]
    assert drawn[9, 35].max() == 0 and drawn[20, 50].max() == 0
    assert BLACK.max() == 0


def test_the_second_object_has_the_second_color() -> None:
    other = np.zeros((40, 60), dtype=bool)
    other[0:5, 0:5] = True
    drawn = np.asarray(overlay(BLACK, [square_mask(), other]))
    assert tuple(drawn[0, 0]) == PALETTE[1]


def test_a_box_is_drawn_on_its_own_pixels_with_exclusive_far_sides() -> None:
    drawn = np.asarray(overlay(BLACK, prompts=[SamPrompt(Box(20, 10, 50, 30))]))
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 20, 49)


def test_positive_points_are_green_and_negative_ones_red_at_their_coordinates() -> None:
    prompt = SamPrompt(None, (Point(15.5, 15.5, 1), Point(45.5, 25.5, 0)))
    drawn = np.asarray(overlay(BLACK, prompts=[prompt]))
    assert tuple(drawn[15, 15]) == POSITIVE_COLOR
    assert tuple(drawn[25, 45]) == NEGATIVE_COLOR


@pytest.mark.parametrize(("long_side", "size_wh"), [(0, (60, 40)), (60, (60, 40)), (61, (120, 80)), (180, (180, 120))])
def test_enlarging_uses_the_smallest_integer_factor(long_side: int, size_wh: tuple[int, int]) -> None:
    assert overlay(BLACK, [square_mask()], long_side=long_side).size == size_wh


def test_a_negative_point_is_ringed_in_white_on_all_sides() -> None:
    drawn = np.asarray(overlay(BLACK, prompts=[SamPrompt(None, (Point(30.5, 20.5, 0),))]))
    red = (drawn == NEGATIVE_COLOR).all(axis=2)
    padded = np.pad(red, 1)
    beside = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]) & ~red
    assert red.any() and (drawn[beside] == 255).all()


def test_enlarged_boxes_and_masks_stay_aligned() -> None:
    drawn = np.asarray(overlay(BLACK, [square_mask()], [SamPrompt(Box(20, 10, 50, 30))], long_side=240))
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 119, 80, 199)


def test_a_mask_of_another_size_raises_an_error_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\).*\(60, 40\)"):
        overlay(BLACK, [np.zeros((60, 40), dtype=bool)])


def test_panels_hold_every_image_unchanged_and_grow_with_the_caption() -> None:
    red, blue = Image.new("RGB", (50, 30), "red"), Image.new("RGB", (40, 60), "blue")
    bare = panels([(red, ""), (blue, "")])
    captioned = panels(
        [(red, "truth"), (blue, "prediction")], "a caption that is much too long for one line of this page " * 2
    )
    pixels = np.asarray(captioned)
    assert ((pixels == (255, 0, 0)).all(axis=2)).sum() == 50 * 30
    assert ((pixels == (0, 0, 255)).all(axis=2)).sum() == 40 * 60
    assert captioned.width == bare.width and captioned.height > bare.height + 40


def test_a_word_wider_than_the_page_is_broken_into_lines() -> None:
    image = Image.new("RGB", (60, 20), "red")
    one, long = panels([(image, "")], "short"), panels([(image, "")], "x" * 100)
    assert long.width == one.width and long.height > one.height


def test_panels_and_sheets_without_images_raise_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        panels([])
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([])


def test_a_contact_sheet_shows_every_image() -> None:
    sheet = np.asarray(contact_sheet([Image.new("RGB", (20, 10 + n), "red") for n in range(5)], columns=2))
    assert ((sheet == (255, 0, 0)).all(axis=2)).sum() == sum(20 * (10 + n) for n in range(5))


def test_a_mask_image_is_0_and_255() -> None:
    drawn = np.asarray(mask_image(square_mask()))
    assert set(np.unique(drawn)) == {0, 255} and (drawn == 255).sum() == square_mask().sum()
