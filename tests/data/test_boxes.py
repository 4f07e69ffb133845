"""Annotated boxes are compared with their mask and their image."""

from __future__ import annotations

import numpy as np
import pytest

from sam4mllm.data.boxes import check_box
from sam4mllm.data.masks import encode, tight_box
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, box_of_mask

SIZE_WH = (120, 80)


def mask_of(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((80, 120), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize(
    "box",
    [
        (60, 40, 100, 70),
        (60.4, 39.8, 99, 69),
        (61.9, 38.1, 98.1, 71.9),
        (55, 35, 104, 75),
    ],
)
def test_a_box_that_fits_its_mask_passes(box: tuple[float, ...]) -> None:
    check_box(Box(*box), SIZE_WH, encode(mask_of(60, 40, 100, 70)))


def test_the_box_of_one_pixel_at_the_origin_is_not_normalized() -> None:
    check_box(Box(0, 0, 1, 1), SIZE_WH, encode(mask_of(0, 0, 1, 1)))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((60, 40, 160, 110), "its numbers are x1, y1, x2, y2, but this field is x, y, width, height"),
        ((60, 40, 40, 30), "its numbers are x, y, width, height, but this field is x1, y1, x2, y2"),
        ((40, 60, 70, 100), "its numbers are y before x"),
        ((0.5, 0.5, 0.8333, 0.875), "its numbers are shares of the image's sides"),
        ((50, 50, 83.33, 87.5), "its numbers are percent of the image's sides"),
        ((500, 500, 833, 875), "its numbers are thousandths of the image's sides"),
        ((0, 0, 0, 0), "has no area in the image"),
        ((60, 40, 60, 60), "has no area in the image"),
        ((0.1, 0.1, 0.3, 0.3), "is normalized to the image's size"),
        ((60, 40, 125, 70), "leaves the image"),
        ((0, 0, 20, 20), r"does not fit its mask, whose box is \[60.0, 40.0, 100.0, 70.0\]; correct it, or leave"),
        ((0, 0, 119, 79), "does not fit its mask"),
    ],
)
def test_a_box_that_does_not_fit_its_mask_is_refused(box: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_box(Box(*box), SIZE_WH, encode(mask_of(60, 40, 100, 70)))


def test_a_mask_without_a_pixel_is_refused() -> None:
    with pytest.raises(DataError, match="the mask has no pixel, so there is no object"):
        check_box(Box(60, 40, 100, 70), SIZE_WH, encode(mask_of(0, 0, 0, 0)))


@pytest.mark.parametrize("seed", range(20))
def test_the_tight_box_is_that_of_the_decoded_mask(seed: int) -> None:
    mask = np.random.default_rng(seed).random((13, 17)) > (0.5, 0.9, 0.99, 1)[seed % 4]
    assert tight_box(encode(mask)) == box_of_mask(mask)
