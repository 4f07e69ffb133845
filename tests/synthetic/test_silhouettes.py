from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sam4mllm.synthetic.silhouettes import SILHOUETTES, TURNS_FREELY, loops
from tests.synthetic.regions import holes_of, parts_of

SIDE = 80
WITH_A_HOLE = {"ring", "frame"}
WITH_ARMS = {"crescent", "star", "cross", "arrow", "heart", "C"}


def _drawn(name: str) -> np.ndarray:
    """The silhouette (80, 80) bool, the unit frame from -1.25 to 1.25."""
    image = Image.new("L", (4 * SIDE, 4 * SIDE))
    for loop in loops(name):
        corners = (loop.outline / 1.25 + 1) * 2 * SIDE
        ImageDraw.Draw(image).polygon([(x, y) for x, y in corners], fill=255 if loop.filled else 0)
    return np.asarray(image.reduce(4)) > 127


def _bends_inwards(mask: np.ndarray) -> bool:
    """Whether the centre between two pixels of the mask is outside of it, for some pair."""
    pixels = np.argwhere(mask)
    middles = (pixels[:, None] + pixels[None, :]) // 2
    return bool((~mask[middles[..., 0], middles[..., 1]]).mean() > 0.01)


def test_there_are_at_least_ten_and_the_freely_rotated_are_among_them() -> None:
    assert len(set(SILHOUETTES)) == len(SILHOUETTES) >= 10
    assert set(SILHOUETTES) > TURNS_FREELY


@pytest.mark.parametrize("name", SILHOUETTES)
def test_a_silhouette_is_one_part_about_as_large_as_its_unit_circle(name: str) -> None:
    reach = max(float(np.hypot(*loop.outline.T).max()) for loop in loops(name) if loop.filled)
    assert 0.85 <= reach <= 1.25
    mask = _drawn(name)
    assert len(parts_of(mask)) == 1
    assert mask.mean() > 0.1


@pytest.mark.parametrize("name", SILHOUETTES)
def test_silhouettes_have_the_holes_and_arms_of_their_names(name: str) -> None:
    mask = _drawn(name)
    assert len(holes_of(mask)) == (1 if name in WITH_A_HOLE else 0)
    assert _bends_inwards(mask) == (name in WITH_A_HOLE | WITH_ARMS)


def test_no_two_silhouettes_look_alike() -> None:
    drawn = [_drawn(name) for name in SILHOUETTES]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert (one & other).sum() / (one | other).sum() < 0.9
