from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sam4mllm.data.masks import area, check_rle, decode, encode, from_segmentation, mask_of_image
from sam4mllm.errors import DataError

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


def test_polygons_from_0_to_1_are_refused_from_two_pixels_a_side_on() -> None:
    polygon = [0, 0, 1, 0, 0.5, 1]
    assert from_segmentation([polygon], (1, 9))["size"] == [1, 9]
    with pytest.raises(ValueError, match="normalized"):
        from_segmentation([polygon], (2, 9))


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


@pytest.mark.parametrize(("mode", "name"), [("LA", "a.png"), ("LA", "a.tiff"), ("PA", "a.tiff"), ("RGBA", "a.png")])
def test_black_and_transparent_pixels_are_off_the_mask(tmp_path: Path, mode: str, name: str) -> None:
    gray = np.array([[0, 255, 255], [0, 255, 0]], dtype=np.uint8)
    alpha = np.array([[255, 255, 0], [0, 1, 255]], dtype=np.uint8)
    image = Image.fromarray(gray).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.mode == mode
    expected = [[False, True, False], [False, True, False]]
    assert decode(mask_of_image(tmp_path / name)).tolist() == expected


def _bytes(format_: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (40, 30), 255).save(file, format=format_)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", r"not an image that can be read as a mask \(PNG, \.\.\.\)$"),
        (_bytes("PNG")[:60], r"not an image that can be read as a mask \(PNG, \.\.\.\): [a-z]"),
        (_bytes("JPEG"), "the compression noise of JPEG adds pixels to the mask; save it as PNG$"),
    ],
)
def test_the_error_about_a_file_without_a_mask_names_it_and_has_the_kind_mask(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for source, name in ((tmp_path / "a.png", str(tmp_path / "a.png")), (io.BytesIO(content), "the mask")):
        with pytest.raises(DataError, match=f"^{name}: {message}") as error:
            mask_of_image(source)
        assert error.value.kind == "mask"


def test_a_mask_without_its_file_is_an_error_of_the_kind_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/a.png: no such file; a mask was expected .an RLE is an") as error:
        mask_of_image(tmp_path / "a.png")
    assert error.value.kind == "mask"
