from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam4mllm.data.masks import area, check_rle, decode, encode, from_segmentation

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(MASKS)
def test_an_rle_decodes_to_its_mask(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert check_rle(rle) == rle
    assert np.array_equal(decode(rle), mask)
    assert area(rle) == mask.sum()


@given(MASKS)
def test_an_uncompressed_rle_is_the_same_mask(mask: np.ndarray) -> None:
    runs, value = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    assert from_segmentation({"size": list(mask.shape), "counts": runs}, mask.shape) == encode(mask)


@given(MASKS, st.data())
def test_truncated_counts_are_refused(mask: np.ndarray, data: st.DataObject) -> None:
    rle = encode(mask)
    cut = rle["counts"][: data.draw(st.integers(0, len(rle["counts"]) - 1))]
    with pytest.raises(ValueError, match="counts"):
        check_rle({"size": rle["size"], "counts": cut})


@given(st.text(max_size=20))
def test_arbitrary_counts_are_decoded_or_raise_a_clear_error(counts: str) -> None:
    try:
        rle = check_rle({"size": [3, 4], "counts": counts})
    except ValueError as error:
        assert "counts" in str(error)
    else:
        assert decode(rle).shape == (3, 4)


def test_overlapping_polygons_are_their_or() -> None:
    left, right = [0, 0, 6, 0, 6, 4, 0, 4], [3, 0, 9, 0, 9, 4, 3, 4]
    mask = decode(from_segmentation([left, right], (4, 10)))
    expected = np.zeros((4, 10), dtype=bool)
    expected[:, :9] = True
    assert np.array_equal(mask, expected)


def test_a_polygon_may_reach_beyond_its_image() -> None:
    assert decode(from_segmentation([[-30, -30, 40, -30, 40, 40, -30, 40]], (3, 4))).all()


@pytest.mark.parametrize("polygons", [[[0, 0, 1, 0, 1, 1, 0, 1]], [[0.1, 0.1, 0.9, 0.1, 0.9, 0.5], [0, 0, 4, 0, 4, 4]]])
def test_small_polygons_in_pixels_are_not_taken_for_normalized_ones(polygons: list[list[float]]) -> None:
    assert area(from_segmentation(polygons, (4, 4))) >= 1


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the mask is \(3, 4\) \(H, W\), its image is \(4, 3\)"):
        from_segmentation(encode(np.ones((3, 4), dtype=bool)), (4, 3))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "list of polygons or an RLE"),
        ([], "list of polygons or an RLE"),
        ("text", "list of polygons or an RLE"),
        # pycocotools would take four numbers for a box.
        ([[1, 1, 3, 3]], "three points"),
        ([[0, 0, 4, 0, 4, 4, 0]], "three points"),
        ([[0, 0, 4, 0, 4, "4"]], "finite numbers"),
        ([[0, 0, 4, 0, 4, float("nan")]], "finite numbers"),
        ([0, 0, 4, 0, 4, 4], "finite numbers"),
        ([[0, 0, 4, 0, 4, 10**400]], "finite numbers"),
        ([[0, 0, 4, 0, 4, 41]], r"in pixels of its image, which is \(4, 4\) \(width, height\); got 41, which is far"),
        ([[0, 0, 4, 0, -2e7, 4]], "got -2e.07, which is far outside"),
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.5]], r"normalized to the image's size .*; give pixels of \(4, 4\)"),
        ([[0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0.5, 1]], "normalized to the image's size"),
        ({"size": [4, 4]}, "an RLE is"),
        ({"size": [4], "counts": "d0"}, "two positive integers"),
        ({"size": [4, -4], "counts": "d0"}, "two positive integers"),
        ({"size": [4, 4], "counts": [10, 5]}, "fill"),
        ({"size": [4, 4], "counts": [20, -4]}, "fill"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "list of integers"),
        ({"size": [4, 4], "counts": 16}, "list of integers"),
    ],
)
def test_invalid_segmentations_are_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_segmentation(segmentation, (4, 4))
