"""ReasonSeg's label maps: equal to LISA's code pixel by pixel, also for polygons that leave the image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.readers.reasonseg import draw_labels, draw_polygon


def lisa_labels(shapes: list[dict[str, Any]], width: int, height: int) -> np.ndarray:
    """The drawing of get_mask_from_json in LISA's utils/data_processing.py, step by step."""
    areas, kept = [], []
    for shape in shapes:
        if shape["label"].lower() == "flag":
            continue
        canvas = np.zeros((height, width), dtype=np.uint8)
        cv2.polylines(canvas, np.array([shape["points"]], dtype=np.int32), True, 1, 1)
        cv2.fillPoly(canvas, np.array([shape["points"]], dtype=np.int32), 1)
        areas.append(canvas.sum())
        kept.append(shape)
    labels = np.zeros((height, width), dtype=np.uint8)
    for index in np.argsort(areas)[::-1].astype(np.int32):
        value = 255 if "ignore" in kept[index]["label"].lower() else 1
        points = np.array([kept[index]["points"]], dtype=np.int32)
        cv2.polylines(labels, points, True, value, 1)
        cv2.fillPoly(labels, points, value)
    return labels


@pytest.mark.parametrize("margin", [0, 15, 200], ids=["inside", "near", "far"])
def test_random_shapes_are_drawn_as_lisa_draws_them(margin: int) -> None:
    rng = np.random.default_rng(margin)
    width, height = 60, 40
    for _ in range(100):
        shapes = []
        for _ in range(int(rng.integers(1, 5))):
            corners = int(rng.integers(1, 9))
            low, high = -float(margin), np.array([width, height]) - 1.0 + margin
            points = rng.uniform(low, high, (corners, 2)).round(int(rng.integers(0, 3))).tolist()
            shapes.append({"label": str(rng.choice(["target", "Ignore", "flag"])), "points": points})
        assert np.array_equal(draw_labels(shapes, (width, height), "here"), lisa_labels(shapes, width, height))


def as_text(mask: np.ndarray) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in mask]


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
def test_polygons_include_their_outline(points: list[list[int]], rows: list[str]) -> None:
    assert as_text(draw_polygon(np.array(points, dtype=np.int32), (6, 4))) == rows


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_rectangle_holds_its_corner_pixels_and_all_between(x1: int, y1: int, x2: int, y2: int) -> None:
    mask = draw_polygon(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.int32), (10, 10))
    expected = np.zeros((10, 10), dtype=bool)
    expected[min(y1, y2) : max(y1, y2) + 1, min(x1, x2) : max(x1, x2) + 1] = True
    assert np.array_equal(mask, expected)


CORNERS = st.lists(st.tuples(st.integers(-30, 60), st.integers(-30, 60)), min_size=1, max_size=8)


@given(CORNERS)
def test_corners_inside_the_image_are_drawn(corners: list[tuple[int, int]]) -> None:
    mask = draw_polygon(np.array(corners, dtype=np.int32), (30, 30))
    assert mask.shape == (30, 30)
    assert all(mask[y, x] for x, y in corners if 0 <= x < 30 and 0 <= y < 30)


def test_a_polygon_with_the_largest_coordinates_is_drawn() -> None:
    far = 2**24 - 1
    assert draw_polygon(np.array([[0, 0], [far, 0], [far, far], [0, far]], dtype=np.int32), (50, 40)).all()
