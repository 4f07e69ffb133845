from __future__ import annotations

from itertools import combinations

import numpy as np

from sam4mllm.synthetic.scenes import COLOURS, PATTERNS, SIZES_WH, Scene, make_scene
from sam4mllm.synthetic.silhouettes import SILHOUETTES


def test_a_key_always_gives_the_same_pixels() -> None:
    first, again = make_scene(5, 1, 3), make_scene(5, 1, 3)
    assert first.image.tobytes() == again.image.tobytes()
    assert len(first.shapes) == len(again.shapes)
    for one, other in zip(first.shapes, again.shapes, strict=True):
        assert (one.name, one.colour, one.pattern, one.box) == (other.name, other.colour, other.pattern, other.box)
        assert one.mask.tobytes() == other.mask.tobytes()


def test_each_number_of_the_key_changes_the_scene() -> None:
    keys = [(5, 1, 3), (5, 1, 4), (5, 2, 3), (6, 1, 3)]
    assert len({make_scene(*key).image.tobytes() for key in keys}) == len(keys)


def test_a_scene_has_two_to_six_shapes_and_all_these_numbers_occur(scenes: list[Scene]) -> None:
    assert {len(scene.shapes) for scene in scenes} == {2, 3, 4, 5, 6}


def test_every_silhouette_eight_colours_every_pattern_and_size_occur(scenes: list[Scene]) -> None:
    shapes = [shape for scene in scenes for shape in scene.shapes]
    assert {shape.name for shape in shapes} == set(SILHOUETTES)
    assert {shape.colour for shape in shapes} == set(COLOURS) and len(COLOURS) == 8
    assert {shape.pattern for shape in shapes} == set(PATTERNS)
    assert {scene.size_wh for scene in scenes} == set(SIZES_WH)


def test_visible_parts_are_disjoint_none_is_empty_and_boxes_are_tight(scenes: list[Scene]) -> None:
    for scene in scenes:
        width, height = scene.size_wh
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        covered = np.zeros((height, width), dtype=int)
        for shape in scene.shapes:
            assert shape.mask.shape == (height, width) and shape.mask.dtype == bool and shape.mask.any()
            covered += shape.mask
            rows, columns = np.nonzero(shape.mask)
            assert tuple(shape.box) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert covered.max() == 1


def test_some_shapes_are_partly_occluded(scenes: list[Scene]) -> None:
    """A complete circle covers pi / 4 of its box; one that is partly occluded does not."""
    circles = [shape for scene in scenes for shape in scene.shapes if shape.name == "circle"]
    shares = np.array([shape.mask.sum() / max(shape.box.width, shape.box.height) ** 2 for shape in circles])
    assert (np.abs(shares - np.pi / 4) < 0.04).any()
    assert (shares < np.pi / 4 - 0.08).any()


def test_a_plain_shape_is_painted_in_its_colour(scenes: list[Scene]) -> None:
    """The colour that is nearest to a plain shape's median is its own."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], dtype=float)
    plain = [(scene, shape) for scene in scenes for shape in scene.shapes if shape.pattern == "plain"]
    for scene, shape in plain:
        seen = np.median(scene.image[shape.mask].astype(float), axis=0)
        assert names[int(np.abs(palette - seen).sum(axis=1).argmin())] == shape.colour
    assert len(plain) > 50


def test_scenes_with_shared_boxes_hold_pairs_whose_boxes_overlap_and_whose_look_differs() -> None:
    def pairs(shared_boxes: float) -> int:
        scenes = [make_scene(9, index, shared_boxes=shared_boxes) for index in range(40)]
        found = [(a, b) for scene in scenes for a, b in combinations(scene.shapes, 2) if a.box.iou(b.box) > 0.5]
        if shared_boxes:
            assert all(a.name != b.name or a.colour != b.colour for a, b in found)
        return len(found)

    assert pairs(0.5) >= 30 > 3 * pairs(0.0)


def test_by_default_no_shape_is_placed_on_another_one() -> None:
    assert make_scene(9, 1, shared_boxes=0.0).image.tobytes() == make_scene(9, 1).image.tobytes()
    assert make_scene(9, 1, shared_boxes=0.5).image.tobytes() != make_scene(9, 1).image.tobytes()
