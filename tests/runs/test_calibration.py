"""Calibration: probabilities from confidences, also for few pairs and for pairs of one outcome; deterministic."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.predictions import Confidence
from sam4mllm.runs.calibration import (
    NO_OBJECT_FEATURES,
    OBJECT_FEATURES,
    Calibration,
    Pair,
    cross_fitted,
    fit_calibration,
    fit_regression,
    scores_of,
    smoothed,
)

SHARES = st.floats(0, 1)
CONFIDENCES = st.builds(
    Confidence, text=st.none() | st.floats(-12, 0), points=st.none() | SHARES, iou=st.none() | st.floats(-1, 2)
)
PAIRS = st.lists(st.tuples(CONFIDENCES, st.booleans()), max_size=12)
SOME_PAIRS = st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=12)


def drawn(count: int, seed: int = 0) -> list[Pair]:
    """Draw pairs with the probability sigmoid(8 * (iou - 0.6) + text) of being correct; points do not matter."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        text, points, iou = -rng.exponential(0.5), rng.random(), rng.random()
        truth = 1 / (1 + math.exp(-(8 * (iou - 0.6) + text)))
        pairs.append((Confidence(text, points, iou), bool(rng.random() < truth)))
    return pairs


def loss(probabilities: list[float], targets: np.ndarray) -> float:
    found = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(targets * np.log(found) + (1 - targets) * np.log(1 - found)).sum())


@given(PAIRS, PAIRS, CONFIDENCES)
def test_every_score_is_a_probability_whatever_was_fitted(
    objects: list[Pair], no_object: list[Pair], confidence: Confidence
) -> None:
    calibration = fit_calibration(objects, no_object, "val")
    assert (calibration is None) == (not objects and not no_object)
    for status in ("ok", "no_object", "malformed"):
        scores, score = scores_of(status, [confidence], calibration)
        assert all(0 <= each <= 1 for each in scores) and (score is None or 0 <= score <= 1)


@given(PAIRS, PAIRS)
def test_a_calibration_survives_json(objects: list[Pair], no_object: list[Pair]) -> None:
    calibration = fit_calibration(objects, no_object, "val")
    if calibration is not None:
        assert Calibration.from_json(json.loads(json.dumps(calibration.to_json(), allow_nan=False))) == calibration


@given(SOME_PAIRS)
def test_a_fit_is_not_worse_on_its_own_pairs_than_a_constant(pairs: list[Pair]) -> None:
    regression = fit_regression(pairs, OBJECT_FEATURES)
    assert regression is not None
    targets = smoothed(np.array([right for _, right in pairs]))
    constant = [float(targets.mean())] * len(pairs)
    found = [regression.probability(confidence) for confidence, _ in pairs]
    assert loss(found, targets) <= loss(constant, targets) + 1e-4


def test_many_pairs_recover_the_distribution_that_they_were_drawn_from() -> None:
    regression = fit_regression(drawn(4000), OBJECT_FEATURES)
    assert regression is not None and regression.n == 4000
    for text, iou in ((-0.1, 0.9), (-0.1, 0.5), (-1.0, 0.6), (-0.5, 0.2)):
        truth = 1 / (1 + math.exp(-(8 * (iou - 0.6) + text)))
        assert regression.probability(Confidence(text, 0.5, iou)) == pytest.approx(truth, abs=0.03)
    assert abs(regression.features["points"].weight) < 0.15 < abs(regression.features["text"].weight)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_pairs_of_one_outcome_give_the_smoothed_share_whatever_the_confidence(right: bool, count: int) -> None:
    pairs = [(Confidence(-0.1 * index, 0.5, 0.01 * index), right) for index in range(count)]
    regression = fit_regression(pairs, OBJECT_FEATURES)
    assert regression is not None and (regression.n, regression.right) == (count, count * right)
    expected = (count + 1) / (count + 2) if right else 1 / (count + 2)
    for confidence in (Confidence(), Confidence(-9.0, 0.0, 0.0), Confidence(0.0, 1.0, 1.0)):
        assert regression.probability(confidence) == pytest.approx(expected, abs=1e-5)


def test_without_pairs_there_is_no_calibration_and_a_part_without_pairs_is_none() -> None:
    assert fit_calibration([], [], "val") is None
    one = fit_calibration(drawn(9), [], "val")
    assert one is not None and one.objects is not None and one.no_object is None
    other = fit_calibration([], [(Confidence(-0.1), True)], "val")
    assert other is not None and other.objects is None and other.no_object is not None


def test_a_missing_value_counts_as_the_mean_or_as_a_feature_if_it_was_missing_in_some_pairs() -> None:
    always = fit_regression(drawn(200), OBJECT_FEATURES)
    assert always is not None and all(feature.missing == 0 for feature in always.features.values())
    mean = Confidence(*(feature.mean for feature in always.features.values()))
    assert always.probability(Confidence()) == pytest.approx(always.probability(mean), abs=1e-4)
    # Those without points are wrong: the gap itself tells.
    gaps = [(Confidence(-0.1, None if index % 2 else 0.9, 0.8), index % 2 == 0) for index in range(60)]
    regression = fit_regression(gaps, OBJECT_FEATURES)
    assert regression is not None and regression.features["points"].missing < 0
    assert (
        regression.probability(Confidence(-0.1, None, 0.8))
        < 0.2
        < 0.8
        < regression.probability(Confidence(-0.1, 0.9, 0.8))
    )


def test_a_value_that_no_pair_had_is_left_out_and_nan_counts_as_missing() -> None:
    regression = fit_regression(
        [(Confidence(text=-0.1, iou=0.9), True), (Confidence(text=-2.0), False)], OBJECT_FEATURES
    )
    assert regression is not None and set(regression.features) == {"text", "iou"}
    assert regression.probability(Confidence(-0.1, 0.5, 0.9)) == regression.probability(Confidence(-0.1, None, 0.9))
    assert regression.probability(Confidence(-0.1, None, math.nan)) == regression.probability(Confidence(-0.1))


@given(SOME_PAIRS)
def test_the_fifth_digit_of_confidences_which_batches_may_change_is_ignored(pairs: list[Pair]) -> None:
    written = [(Confidence(**confidence.to_json()), right) for confidence, right in pairs]
    assert fit_regression(written, OBJECT_FEATURES) == fit_regression(pairs, OBJECT_FEATURES)


def test_without_a_calibration_scores_are_the_predicted_iou_and_the_mean_token_probability() -> None:
    ok = [Confidence(-0.1, None, 0.8), Confidence(-0.2, None, 1.3), Confidence(-0.2, None, -0.1)]
    assert scores_of("ok", ok, None) == ([0.8, 1.0, 0.0], 0.0)
    assert scores_of("ok", ok[:2], None) == ([0.8, 1.0], 0.8)
    assert scores_of("no_object", [Confidence(math.log(0.25))], None) == ([], pytest.approx(0.25))
    assert scores_of("no_object", [], None) == scores_of("no_object", [Confidence()], None) == ([], None)
    assert scores_of("malformed", [], None) == ([], 0.0)


def test_cross_fitting_never_scores_an_image_by_a_fit_to_it() -> None:
    pairs, images = drawn(40), [index // 4 for index in range(40)]
    found = cross_fitted(pairs, images, OBJECT_FEATURES)
    assert found is not None
    for place, (confidence, _) in enumerate(pairs):
        others = [pair for pair, own in zip(pairs, images, strict=True) if own % 5 != images[place] % 5]
        regression = fit_regression(others, OBJECT_FEATURES)
        assert regression is not None and found[place] == regression.probability(confidence)
    assert cross_fitted(pairs, ["one image"] * 40, OBJECT_FEATURES) is None
    assert cross_fitted([], [], NO_OBJECT_FEATURES) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: [],
        lambda found: found.pop("objects"),
        lambda found: found["objects"].pop("bias"),
        lambda found: found["objects"].update(bias="much"),
        lambda found: found["objects"].update(bias=math.nan),
        lambda found: found["objects"].update(features=[]),
        lambda found: found["objects"]["features"].update(colour=found["objects"]["features"]["text"]),
        lambda found: found["objects"]["features"]["text"].update(scale=0),
        lambda found: found["objects"]["features"]["text"].pop("mean"),
        lambda found: found.update(no_object=7),
    ],
)
def test_a_damaged_calibration_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    calibration = fit_calibration(drawn(9), [], "val")
    assert calibration is not None
    found = calibration.to_json()
    replaced = damage(found)
    with pytest.raises(ValueError, match=r"\w"):
        Calibration.from_json(replaced if replaced == [] else found)


@pytest.mark.parametrize(
    ("objects", "no_object", "expected"),
    [
        (2, 0, "fitted to 2 objects of mine;"),
        (50, 3, 'to 3 "no object" answers of'),
        (2, 1, "2 objects and 1 "),
        (50, 50, None),
    ],
)
def test_a_calibration_of_few_answers_is_noted(objects: int, no_object: int, expected: str | None) -> None:
    pairs = [(Confidence(text=-0.1, iou=0.9), True), (Confidence(text=-2.0, iou=0.5), False)] * 25
    calibration = fit_calibration(pairs[:objects], pairs[:no_object], "mine")
    assert calibration is not None
    note = calibration.note()
    assert (note is None) if expected is None else (note is not None and expected in note)
