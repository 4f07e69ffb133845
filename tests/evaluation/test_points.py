"""Points on and off the annotated objects: counts by hand, chance against brute force, matching of crowds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.evaluation.points import PointScores, PointTally, matched_points, share_on_mask
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt, box_of_mask, mask_of_box
from sam4mllm.targets.sampling import draw_groups, seeded_rng

Mask = npt.NDArray[np.bool_]

HEIGHT, WIDTH = 6, 12
SIZE_WH = (WIDTH, HEIGHT)


def _columns(first: int, last: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, first:last] = True
    return mask


def _box(first: float, last: float) -> Box:
    return Box(first, 0, last, HEIGHT)


def _prompt(box: Box | None, on: list[tuple[float, float]], off: list[tuple[float, float]]) -> SamPrompt:
    positives = [Point(x, y, POSITIVE) for x, y in on]
    return SamPrompt(box, (*positives, *(Point(x, y, NEGATIVE) for x, y in off)))


def _scores(prompts: list[SamPrompt | None], spans: list[tuple[int, int]], ignored: Mask | None = None) -> PointScores:
    tally = PointTally()
    tally.add(prompts, [_box(*span) for span in spans], [_columns(*span) for span in spans], ignored)
    return tally.scores()


def test_an_answer_by_hand() -> None:
    # The object is columns 0 ... 3; the predicted box has 6 of 12 columns, widened by 0.6 on both sides 7 of 12.
    prompt = _prompt(_box(0, 6), [(0.5, 0.5), (3.9, 5.9), (4.1, 0.5)], [(4.0, 0.5), (2.5, 2.5)])
    assert _scores([prompt], [(0, 4)]) == PointScores(
        points_on=pytest.approx(2 / 3),
        points_on_chance=pytest.approx(4 / 6),
        points_off=pytest.approx(1 / 2),
        points_off_chance=pytest.approx(3 / 7),
        positive_points=3,
        negative_points=2,
        points_kept=5.0,
    )


@pytest.mark.parametrize(
    ("point", "is_on"),
    [
        ((0.0, 0.0), True),
        ((3.999, 5.999), True),
        ((4.0, 0.0), False),
        ((-0.001, 0.5), False),
        ((0.5, -0.001), False),
        ((0.5, 6.0), False),
        ((12.0, 0.5), False),
        ((-100.0, 100.0), False),
    ],
)
def test_a_point_is_at_the_pixel_that_contains_it_and_off_outside_the_image(
    point: tuple[float, float], is_on: bool
) -> None:
    scores = _scores([_prompt(_box(0, 4), [point], [point])], [(0, 4)])
    assert (scores.points_on, scores.points_off) == (float(is_on), float(not is_on))


def test_points_on_ignored_pixels_are_left_out_of_counts_and_chance() -> None:
    # Columns 3 ... 5 are ignored: of the box, columns 0 ... 2 are on the object and 6, 7 off it.
    prompt = _prompt(_box(0, 8), [(1.5, 1.5), (3.5, 1.5), (5.5, 1.5)], [(4.5, 0.5)])
    scores = _scores([prompt], [(0, 5)], _columns(3, 6))
    assert (scores.points_on, scores.positive_points) == (1.0, 1)
    assert scores.points_on_chance == pytest.approx(3 / 5)
    assert (scores.points_off, scores.points_off_chance, scores.negative_points) == (None, None, 0)
    assert scores.points_kept == 4.0


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        [None],
        [SamPrompt(_box(0, 4))],
        [_prompt(None, [(1, 1)], [(5, 1)])],
        # Half of the true box is IoU 0.5, which is not above it; the second box is elsewhere.
        [_prompt(_box(0, 2), [(1, 1)], [(5, 1)])],
        [_prompt(_box(6, 9), [(1, 1)], [(5, 1)])],
    ],
)
def test_without_points_in_matched_boxes_all_shares_are_none(prompts: list[SamPrompt | None]) -> None:
    scores = _scores(prompts, [(0, 4)])
    shares = (scores.points_on, scores.points_on_chance, scores.points_off, scores.points_off_chance)
    assert shares == (None,) * 4 and (scores.positive_points, scores.negative_points) == (0, 0)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], None),
        ([None], None),
        ([SamPrompt(_box(0, 4))], 0.0),
        ([None, SamPrompt(_box(0, 4)), _prompt(None, [(1, 1)], [(5, 1), (6, 1)])], 1.5),
    ],
)
def test_points_kept_is_over_all_objects_with_a_prompt(prompts: list[SamPrompt | None], expected: float | None) -> None:
    assert _scores(prompts, [(0, 4)]).points_kept == expected


def test_a_true_object_is_matched_once_with_the_best_box() -> None:
    # Both predicted boxes have IoU above 0.5 with the one object; the second is exact, so only its points count.
    loose, exact = _prompt(_box(0, 6), [(5.5, 0.5)], []), _prompt(_box(0, 4), [(0.5, 0.5)], [])
    assert [each.positives_on for each in matched_points([loose, exact], [_box(0, 4)], [_columns(0, 4)])] == [1]
    # A box without points takes the object from a worse one with points.
    assert _scores([loose, SamPrompt(_box(0, 4))], [(0, 4)]).points_on is None
    # Points on another object of the sentence are not on the matched one.
    assert _scores([_prompt(_box(0, 4), [(8.5, 0.5)], [])], [(0, 4), (8, 12)]).points_on == 0.0


def test_a_crowd_is_matched_one_to_one() -> None:
    spans = [(first, first + 1) for first in range(WIDTH)]
    prompts = [_prompt(_box(*span), [(span[0] + 0.5, 0.5)], [(span[0] + 1.5, 0.5)]) for span in spans]
    # Each object is predicted twice, in both orders; the second prediction of an object matches none.
    crowd: list[SamPrompt | None] = [*prompts, *reversed(prompts)]
    scores = _scores(crowd, spans)
    assert (scores.positive_points, scores.negative_points, scores.points_kept) == (WIDTH, WIDTH, 2.0)
    assert (scores.points_on, scores.points_off) == (1.0, 1.0)


def test_figures_are_pooled_over_the_points_of_all_answers_in_any_order() -> None:
    many = _prompt(_box(0, 4), [(0.5, 0.5), (1.5, 0.5), (2.5, 0.5)], [])
    one = _prompt(_box(0, 7), [(6.5, 0.5)], [])
    answers = [(many, (0, 4)), (one, (0, 5))]
    tallies = PointTally(), PointTally()
    for tally, order in zip(tallies, (answers, answers[::-1]), strict=True):
        for prompt, span in order:
            tally.add([prompt], [_box(*span)], [_columns(*span)])
    scores = tallies[0].scores()
    assert scores == tallies[1].scores()
    assert scores.points_on == pytest.approx(3 / 4)
    assert scores.points_on_chance == pytest.approx((3 * 1 + 5 / 7) / 4)


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[Box, Mask, Mask | None]:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pixels = st.lists(st.booleans(), min_size=width * height, max_size=width * height)
    mask = np.array(draw(pixels)).reshape(height, width)
    ignored = np.array(draw(pixels)).reshape(height, width) if draw(st.booleans()) else None
    edges = st.one_of(st.integers(-3, 12), st.floats(-3, 12))
    xs, ys = sorted([draw(edges), draw(edges)]), sorted([draw(edges), draw(edges)])
    return Box(xs[0], ys[0], xs[1], ys[1]), mask, ignored


@given(_scenes())
def test_chance_is_the_share_of_pixels_counted_one_by_one(scene: tuple[Box, Mask, Mask | None]) -> None:
    box, mask, ignored = scene
    height, width = mask.shape
    places = [
        (row, column)
        for row in range(height)
        for column in range(width)
        if box.x1 <= column + 0.5 < box.x2 and box.y1 <= row + 0.5 < box.y2
        if ignored is None or not ignored[row, column]
    ]
    on = sum(bool(mask[place]) for place in places)
    expected = float(Fraction(on, len(places))) if places else None
    assert share_on_mask(box, mask, ignored) == expected
    if ignored is None and places:
        assert np.count_nonzero(mask & mask_of_box(box, (width, height))) == on


@given(_scenes(), st.integers(1, 4))
def test_points_at_every_pixel_of_the_boxes_have_exactly_the_share_of_chance(
    scene: tuple[Box, Mask, Mask | None], repeats: int
) -> None:
    _, mask, ignored = scene
    free = mask if ignored is None else mask & ~ignored
    box = box_of_mask(free)
    if box is None:
        return
    height, width = mask.shape

    def everywhere(area: Box, label: int) -> list[Point]:
        rows, columns = np.nonzero(mask_of_box(area, (width, height)))
        return [Point(x + 0.25, y + 0.75, label) for x, y in zip(columns, rows, strict=True)] * repeats

    points = [*everywhere(box, POSITIVE), *everywhere(box.widen(0.1, (width, height)), NEGATIVE)]
    tally = PointTally()
    tally.add([SamPrompt(box, tuple(points))], [box], [mask], ignored)
    scores = tally.scores()
    assert scores.points_on is not None and scores.points_on_chance is not None
    assert scores.points_off is not None and scores.points_off_chance is not None
    assert math.isclose(scores.points_on, scores.points_on_chance)
    assert math.isclose(scores.points_off, scores.points_off_chance, abs_tol=1e-12)


def test_the_training_targets_are_always_right() -> None:
    mask = _columns(2, 5)
    box = _box(2, 5)
    groups = draw_groups(mask, box, seeded_rng(0, "groups", "a"), groups=8, positives=2, negatives=1, margin=0.4)
    for group in range(len(groups)):
        scores = _scores([SamPrompt(box, groups.points(group))], [(2, 5)])
        assert (scores.points_on, scores.points_off, scores.points_kept) == (1.0, 1.0, 3.0)
