from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.drawing import draw_polygon


def _image(mask: np.ndarray) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in mask]


# Made with OpenCV 5.0: polylines(image, [points], True, 1, 1), then fillPoly(image, [points], 1).
@pytest.mark.parametrize(
    ("points", "rows"),
    [
        ([[2, 1]], ["......", "..#...", "......", "......"]),
        ([[0, 0], [5, 3]], ["#.....", ".##...", "...##.", ".....#"]),
        ([[1, 0], [4, 0], [4, 2], [1, 2]], [".####.", ".####.", ".####.", "......"]),
        ([[0, 0], [5, 0], [0, 3]], ["######", "#####.", "###...", "#....."]),
        ([[0, 0], [5, 3], [5, 0], [0, 3]], ["#....#", "######", "######", "#....#"]),
        ([[-3, 1], [2, 1], [2, 9], [-3, 9]], ["......", "###...", "###...", "###..."]),
        ([[-9, -9], [-1, -9], [-1, -1]], ["......", "......", "......", "......"]),
    ],
)
def test_pixels_are_opencvs(points: list[list[int]], rows: list[str]) -> None:
    assert _image(draw_polygon(np.array(points), (6, 4))) == rows


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_rectangle_holds_its_corner_pixels_and_all_between(x1: int, y1: int, x2: int, y2: int) -> None:
    mask = draw_polygon(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]), (10, 10))
    expected = np.zeros((10, 10), dtype=bool)
    expected[min(y1, y2) : max(y1, y2) + 1, min(x1, x2) : max(x1, x2) + 1] = True
    assert np.array_equal(mask, expected)


CORNERS = st.lists(st.tuples(st.integers(-30, 60), st.integers(-30, 60)), min_size=1, max_size=8)


@given(CORNERS)
def test_corners_inside_the_image_are_drawn(corners: list[tuple[int, int]]) -> None:
    mask = draw_polygon(np.array(corners), (30, 30))
    assert mask.shape == (30, 30)
    assert all(mask[y, x] for x, y in corners if 0 <= x < 30 and 0 <= y < 30)


def test_a_corner_far_outside_costs_no_more_than_the_image() -> None:
    far = 2**24 - 1
    assert draw_polygon(np.array([[0, 0], [far, 0], [far, far], [0, far]]), (50, 40)).all()
