"""RLE as pycocotools writes it and as files hold it, with the exact text of every error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sam4mllm.data import masks
from sam4mllm.data.masks import Rle, area, check_rle, decode, encode, from_segmentation, tight_box
from sam4mllm.data.records import is_number
from sam4mllm.geometry import Box

FILL = "the runs of counts must be 0 or more and fill 4 x 5 = 20 pixels; found the sum {} and the smallest run {}"


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, 'an RLE is {"size": [H, W], "counts": text}; got None'),
        ({"size": [4, 5]}, 'an RLE is {"size": [H, W], "counts": text}; got {\'size\': [4, 5]}'),
        ({"counts": "d0"}, "an RLE is {\"size\": [H, W], \"counts\": text}; got {'counts': 'd0'}"),
        ({"size": [4], "counts": "d0"}, "the size of an RLE is [H, W], two positive integers; got [4]"),
        ({"size": [0, 5], "counts": [0]}, "the size of an RLE is [H, W], two positive integers; got [0, 5]"),
        ({"size": "45", "counts": [20]}, "the size of an RLE is [H, W], two positive integers; got '45'"),
        ({"size": [4.0, 5], "counts": [20]}, "the size of an RLE is [H, W], two positive integers; got [4.0, 5]"),
        ({"size": [2**16, 2**16], "counts": [2**32]}, "COCO's RLE holds fewer than 2^32 pixels; got [65536, 65536]"),
        ({"size": [4, 5], "counts": None}, "counts are text or a list of integers; got None"),
        ({"size": [4, 5], "counts": [True, 19]}, "counts are text or a list of integers; got [True, 19]"),
        ({"size": [4, 5], "counts": [10, 5]}, FILL.format(15, 5)),
        ({"size": [4, 5], "counts": [21]}, FILL.format(21, 21)),
        ({"size": [4, 5], "counts": [21, -1]}, FILL.format(20, -1)),
        ({"size": [4, 5], "counts": []}, FILL.format(0, 0)),
        ({"size": [4, 5], "counts": ""}, FILL.format(0, 0)),
        ({"size": [4, 5], "counts": "e"}, "counts are truncated: 'e'"),
        ({"size": [4, 5], "counts": "/"}, "counts are not COCO's compressed text: '/'"),
        ({"size": [4, 5], "counts": "p"}, "counts are not COCO's compressed text: 'p'"),
        ({"size": [4, 5], "counts": "o" * 14}, "counts are not COCO's compressed text: 'oooooooooooooo'"),
    ],
)
def test_the_error_of_each_invalid_rle(rle: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_rle(rle)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("counts", "runs"),
    [("d0", [20]), ("0d0", [0, 20]), ([5, 5, 5, 5], [5, 5, 5, 5]), ([0, 20], [0, 20]), ([3, 1, 16], [3, 1, 16])],
)
def test_runs_alternate_between_background_and_object(counts: Any, runs: list[int]) -> None:
    pixels = np.repeat([index % 2 == 1 for index in range(len(runs))], runs)
    rle = check_rle({"size": [4, 5], "counts": counts})
    assert decode(rle).tolist() == pixels.reshape((4, 5), order="F").tolist()
    assert isinstance(rle["counts"], str) and rle["size"] == [4, 5] and area(rle) == int(pixels.sum())


def test_long_runs_need_several_characters_and_differences_may_be_negative() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[:, 10:50], mask[:3, 60], mask[::2, 99] = True, True, True
    rle = encode(mask)
    assert check_rle({"size": [100, 100], "counts": rle["counts"]}) == rle
    for position in range(1, len(rle["counts"])):
        with pytest.raises(ValueError, match=r"fill|truncated"):
            check_rle({"size": [100, 100], "counts": rle["counts"][:position]})


def test_the_tight_box_of_an_rle() -> None:
    mask = np.zeros((6, 9), dtype=bool)
    assert tight_box(encode(mask)) is None
    mask[2:5, 3:8] = True
    assert tight_box(encode(mask)) == Box(3, 2, 8, 5)
    assert decode(encode(mask)).dtype == bool
    assert encode(mask) == Rle(size=[6, 9], counts=encode(mask)["counts"])


def test_coordinates_above_one_are_pixels_and_not_shares() -> None:
    assert area(from_segmentation([[0.5, 0.5, 1.9, 0.5, 1.9, 1.9, 0.5, 1.9]], (4, 4))) >= 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("text", "^a segmentation is a list of polygons or an RLE; got 'text'$"),
        ([[1, 2, 3, 4, 5, "6"]], r"^a polygon is a list of finite numbers; got \[1, 2, 3, 4, 5, '6'\]$"),
        ([[2, 1, 8, 1, 8, 5], [1, 1, 2, 2]], "got 4 numbers in polygon 2 of 2; remove that polygon"),
    ],
)
def test_the_error_of_a_segmentation_names_what_was_found(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_segmentation(segmentation, (10, 20))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2.5, -3],
        [True, 2, 3],
        ["1", 2],
        [None],
        [math.nan, 1.0],
        [1.0, math.inf],
        [math.inf, -math.inf, 1],
        [1e308, 1e308, 1e308],
        [10**400, 1.5],
        [10**400, -(10**400)],
        [10**400, -(10**400), 0.5],
        [np.float64(1), 2],
    ],
)
def test_the_values_of_a_polygon_are_numbers_together_as_they_are_one_by_one(values: list[Any]) -> None:
    assert masks._are_numbers(values) == all(map(is_number, values))
