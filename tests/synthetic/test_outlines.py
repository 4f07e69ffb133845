from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam4mllm.data.readers.reasonseg import draw_polygon
from sam4mllm.synthetic.outlines import polygons_of
from sam4mllm.synthetic.scenes import Scene
from tests.synthetic.regions import holes_of, parts_of


def _mask(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def _drawn(mask: np.ndarray) -> np.ndarray:
    """The polygons of a mask as the reader of ReasonSeg draws them."""
    drawn = np.zeros_like(mask)
    for polygon in polygons_of(mask):
        drawn |= draw_polygon(np.array(polygon, dtype=np.int32), (mask.shape[1], mask.shape[0]))
    return drawn


@pytest.mark.parametrize(
    ("rows", "polygons"),
    [
        (["....", ".#..", "...."], [[[1, 1]]]),
        (["....", ".###", "...."], [[[1, 1], [3, 1]]]),
        (["....", ".###", ".###"], [[[1, 1], [3, 1], [3, 2], [1, 2]]]),
        (["#..", ".#.", "..."], [[[0, 0]], [[1, 1]]]),
        (["...", "...", "..."], []),
    ],
)
def test_corners_are_pixels_and_each_part_is_a_polygon(rows: list[str], polygons: list[list[list[int]]]) -> None:
    assert sorted(polygons_of(_mask(*rows))) == polygons


def _discs(numbers: list[tuple[int, int, int, bool]]) -> np.ndarray:
    """Discs (x, y, radius, whether it is painted or cut out) on 30 x 26 pixels, one after the other."""
    y, x = np.mgrid[:26, :30]
    mask = np.zeros((26, 30), dtype=bool)
    for centre_x, centre_y, radius, painted in numbers:
        mask[np.hypot(x - centre_x, y - centre_y) <= radius] = painted
    return mask


BLOBS = st.lists(st.tuples(st.integers(-2, 31), st.integers(-2, 27), st.integers(1, 12), st.booleans()), max_size=6)
NOISE = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans())
PART_IN_A_HOLE = _discs([(15, 13, 12, True), (15, 13, 7, False), (15, 13, 4, True)])
RING_ON_THE_RIM = _discs([(15, 12, 30, True), (15, 12, 6, False)])


@given(BLOBS.map(_discs) | NOISE)
@example(RING_ON_THE_RIM)
@example(PART_IN_A_HOLE)
@example(_mask("#####", "#.#.#", "#####", "#.#.#", "#####"))
@example(_mask("####", "#.##", "##.#", "####"))
@example(_mask("#.#.", ".#.#", "#.#.", ".#.#"))
def test_drawn_with_their_outline_the_polygons_give_the_mask_but_for_cuts(mask: np.ndarray) -> None:
    """No pixel is lost; additional ones are only on the cuts, a straight line to each hole."""
    drawn = _drawn(mask)
    assert not (mask & ~drawn).any()
    assert (drawn & ~mask).sum() <= len(holes_of(mask)) * max(mask.shape)
    assert len(polygons_of(mask)) == len(parts_of(mask))


@given(BLOBS.map(_discs) | NOISE)
def test_without_holes_the_polygons_give_the_mask_exactly(mask: np.ndarray) -> None:
    for hole in holes_of(mask):
        mask = mask | hole
    assert np.array_equal(_drawn(mask), mask)


def test_the_shapes_of_scenes_are_restored_exactly(scenes: list[Scene]) -> None:
    masks = [shape.mask for scene in scenes[:30] for shape in scene.shapes]
    assert sum(not np.array_equal(_drawn(mask), mask) for mask in masks) == 0
    assert {"ring", "frame"} <= {shape.name for scene in scenes[:30] for shape in scene.shapes}
    assert any(len(polygons_of(mask)) > 1 for mask in masks)
