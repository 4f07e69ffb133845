import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, box_of_mask
from sam4mllm.targets.sampling import PointGroups, draw_groups, jittered_boxes, poisson_disk, seeded_rng

NO_PLACE = "^the mask leaves 0 pixels of the image; no place for 1 negative points$"


def rng(object_id: str = "a") -> np.random.Generator:
    return seeded_rng(0, "points", object_id)


def draw(
    mask: np.ndarray, positives: int = 2, negatives: int = 1, groups: int = 16, margin: float = 0.1
) -> PointGroups:
    box = box_of_mask(mask)
    assert box is not None
    return draw_groups(mask, box, rng(), groups=groups, positives=positives, negatives=negatives, margin=margin)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    share = draw(st.sampled_from([0.02, 0.3, 0.95]))
    return np.random.default_rng(draw(st.integers(0, 10**6))).random((height, width)) < share


@settings(max_examples=150)
@given(mask=masks(), positives=st.integers(0, 4), negatives=st.integers(0, 3))
def test_positives_are_on_the_mask_and_negatives_off_it(mask: np.ndarray, positives: int, negatives: int) -> None:
    assume(mask.any() and (~mask).sum() >= negatives)
    drawn = draw(mask, positives, negatives)
    assert drawn.xy.shape == (16, positives + negatives, 2)
    assert drawn.labels.tolist() == [1] * positives + [0] * negatives
    pixels = drawn.xy.astype(int)
    np.testing.assert_array_equal(drawn.xy, pixels + 0.5)
    on_mask = mask[pixels[..., 1], pixels[..., 0]]
    assert (on_mask == drawn.labels.astype(bool)).all()


@settings(max_examples=80)
@given(mask=masks(), count=st.integers(1, 4))
def test_the_points_of_a_group_are_distinct_and_sorted_from_left_to_right(mask: np.ndarray, count: int) -> None:
    assume(mask.sum() >= count and (~mask).sum() >= count)
    for points in draw(mask, count, count).xy:
        for kind in (points[:count], points[count:]):
            assert [tuple(point) for point in kind] == sorted({tuple(point) for point in kind})


def test_negatives_are_inside_the_extended_box() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[40:60, 30:50] = True
    mask[45:55, 35:45] = False
    exact = draw(mask, groups=500, margin=0.0).xy[:, 2]
    assert exact[:, 0].min() >= 35 and exact[:, 0].max() <= 45
    wide = draw(mask, groups=2000, margin=0.1).xy[:, 2]
    assert (wide[:, 0].min(), wide[:, 0].max()) == (28.5, 51.5)
    assert (wide[:, 1].min(), wide[:, 1].max()) == (38.5, 61.5)


def test_a_full_box_sends_negatives_to_the_whole_image() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    negatives = draw(mask, margin=0.0, groups=200).xy[:, 2]
    assert negatives[:, 0].min() < 5 and negatives[:, 0].max() > 15


def test_no_negative_is_on_ignored_pixels() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = np.tri(10, dtype=bool)
    ignored = np.zeros((20, 20), dtype=bool)
    ignored[:, 10:] = ~mask[:, 10:]
    box, points = Box(5, 5, 15, 15), {"groups": 200, "positives": 2, "negatives": 1, "margin": 0.1}
    negatives = draw_groups(mask, box, rng(), **points, ignored=ignored).xy[:, 2].astype(int)
    assert not (mask | ignored)[negatives[:, 1], negatives[:, 0]].any()
    with pytest.raises(DataError, match=NO_PLACE):
        draw_groups(mask, box, rng(), **points, ignored=~mask)


def test_a_mask_without_space_for_negatives_raises_an_error() -> None:
    with pytest.raises(DataError, match=NO_PLACE):
        draw(np.ones((4, 4), dtype=bool))
    with pytest.raises(DataError, match=r"^the mask is empty$"):
        draw_groups(np.zeros((4, 4), bool), Box(0, 0, 2, 2), rng(), groups=1, positives=1, negatives=1, margin=0.1)


def test_positives_repeat_on_a_mask_of_one_pixel() -> None:
    mask = np.zeros((5, 5), dtype=bool)
    mask[3, 1] = True
    assert draw(mask).xy[:, :2].tolist() == [[[1.5, 3.5], [1.5, 3.5]]] * 16


def test_all_pairs_of_pixels_are_equally_likely() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :] = True
    pairs = draw(mask, groups=6000).xy[:, :2, 0]
    _, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850 and counts.max() < 1150


def test_samples_depend_only_on_seed_purpose_and_key() -> None:
    mask = np.random.default_rng(0).random((30, 30)) < 0.5
    first = draw(mask)
    np.testing.assert_array_equal(first.xy, draw(mask).xy)
    others = [seeded_rng(0, "points", "b"), seeded_rng(1, "points", "a"), seeded_rng(0, "boxes", "a")]
    for other in others:
        drawn = draw_groups(mask, Box(0, 0, 30, 30), other, groups=16, positives=2, negatives=1, margin=0.1)
        assert not np.array_equal(drawn.xy, first.xy)


def test_groups_convert_to_points_with_labels() -> None:
    groups = PointGroups(np.array([[[1.5, 2.5], [3.5, 0.5]]], dtype=np.float32), np.array([1, 0]))
    assert groups.points(0) == ((1.5, 2.5, 1), (3.5, 0.5, 0))
    assert len(groups) == 1


@settings(max_examples=100)
@given(
    x=st.floats(0, 50),
    y=st.floats(0, 50),
    width=st.floats(0.5, 50),
    height=st.floats(0.5, 50),
    share=st.floats(0, 0.49),
)
def test_jittered_boxes_differ_by_at_most_the_share(
    x: float, y: float, width: float, height: float, share: float
) -> None:
    box = Box(x, y, x + width, y + height)
    boxes = jittered_boxes(box, (100, 100), rng(), share=share, count=8)
    assert boxes.shape == (8, 4)
    assert (boxes >= 0).all() and (boxes <= 100).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    limit = share * np.array([width, height] * 2) + 1e-4
    assert (np.abs(boxes - np.array(box)) <= limit).all()
    if share > 0.01 and min(width, height) > 5:
        assert len(np.unique(boxes, axis=0)) == 8


def test_a_seed_has_the_same_samples_on_every_machine_and_in_every_version() -> None:
    """Stored targets are found again by their settings, so samples of equal settings must stay equal."""
    assert seeded_rng(7, "points", "a").integers(1000, size=4).tolist() == [88, 669, 206, 2]
    mask = np.zeros((12, 16), dtype=bool)
    mask[3:8, 4:11] = True
    groups = {"groups": 3, "positives": 2, "negatives": 1, "margin": 0.2}
    drawn = draw_groups(mask, Box(4, 3, 11, 8), seeded_rng(7, "points", "a"), **groups)
    assert drawn.xy.tolist() == [
        [[4.5, 3.5], [4.5, 6.5], [3.5, 5.5]],
        [[7.5, 4.5], [8.5, 5.5], [8.5, 2.5]],
        [[5.5, 5.5], [6.5, 6.5], [11.5, 2.5]],
    ]
    assert (drawn.xy.dtype, drawn.labels.dtype, drawn.labels.tolist()) == (np.float32, np.int64, [1, 1, 0])
    boxes = jittered_boxes(Box(4, 3, 11, 8), (16, 12), seeded_rng(7, "boxes", "a"), share=0.2, count=2)
    expected = [[4.395616, 2.956195, 9.997721, 8.966546], [2.811721, 3.658751, 11.224686, 7.048759]]
    assert boxes.dtype == np.float32 and boxes == pytest.approx(np.array(expected), abs=1e-5)


def test_boxes_at_the_far_edge_stay_in_the_image_and_negatives_may_take_all_pixels() -> None:
    boxes = jittered_boxes(Box(8, 6, 16, 12), (16, 12), seeded_rng(7, "boxes", "a"), share=0.4, count=50)
    assert (boxes <= [16, 12, 16, 12]).all() and (boxes[:, 2:] == [16, 12]).any(axis=0).all()
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = mask[0, 2] = False
    drawn = draw_groups(mask, Box(0, 0, 3, 3), rng(), groups=4, positives=1, negatives=2, margin=0.0)
    assert (drawn.xy[:, 1:] == [[1.5, 1.5], [2.5, 0.5]]).all()


def test_points_of_a_poisson_disk_keep_their_distance_up_to_the_limit() -> None:
    few = poisson_disk(seeded_rng(7, "p", "a"), 0.3, 3)
    assert few == pytest.approx(np.array([[0.1451, 0.7145], [0.5512, 0.6585], [0.7483, 0.3946]]), abs=1e-4)
    points = poisson_disk(seeded_rng(7, "p", "a"), 0.3, 50)
    distances = np.hypot(*(points[:, None] - points[None]).T)
    assert len(points) == 10 and distances[np.triu_indices(10, 1)].min() >= 0.3
    assert points.min() >= 0 and points.max() <= 1 and poisson_disk(rng(), 0.3, 0).shape == (0, 2)


def test_exactly_as_many_free_pixels_as_negatives_suffice() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 1] = mask[2, 2] = True
    drawn = draw_groups(mask, Box(1, 1, 3, 3), rng(), groups=8, positives=1, negatives=2, margin=0.0)
    assert (drawn.xy[:, 1:] == [[1.5, 2.5], [2.5, 1.5]]).all()
    mask[:] = True
    mask[0, 0] = mask[3, 5] = False
    drawn = draw_groups(mask, Box(1, 1, 3, 3), rng(), groups=8, positives=1, negatives=2, margin=0.0)
    assert (drawn.xy[:, 1:] == [[0.5, 0.5], [5.5, 3.5]]).all()
    assert draw(mask, positives=0, negatives=0).labels.dtype == np.int64


def test_a_pixel_is_in_the_box_if_its_center_is_which_excludes_the_far_sides() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[3, 5] = True
    drawn = draw_groups(mask, Box(1.5, 0.5, 3.5, 2.5), rng(), groups=8, positives=1, negatives=4, margin=0.0)
    assert (drawn.xy[:, 1:] == [[1.5, 0.5], [1.5, 1.5], [2.5, 0.5], [2.5, 1.5]]).all()


def test_a_poisson_disk_has_thirty_candidates_for_each_point() -> None:
    shapes = []

    class Counting(np.random.Generator):
        def random(self, shape: tuple[int, int]) -> np.ndarray:  # type: ignore[override]
            shapes.append(shape)
            return np.zeros(shape)

    assert len(poisson_disk(Counting(np.random.PCG64(0)), 0.1, 4)) == 1 and shapes == [(120, 2)]
