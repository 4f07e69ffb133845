"""Calibration: from what speaks for an answer to the probability that it is right.

Two small logistic regressions, one for objects (text, points, iou) and one for answers that nothing fits (text). They
are fitted to pairs of evidence and outcome from answers that were not trained on. Here is, too, what stands for a score
where nothing was fitted. Pure numbers: this module knows no files, no models and no masks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sam4mllm.data.predictions import Confidence

Pair: TypeAlias = tuple[Confidence, bool]
"""What spoke for an object or an answer, and whether it was right."""

OBJECT_FEATURES = ("text", "points", "iou")
NO_OBJECT_FEATURES = ("text",)

_DIGITS = 6
"""Digits kept of what is fitted: the same on every machine, however its sums are rounded."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What one value of the evidence adds: `weight` * (value - `mean`) / `scale`, or `missing` where nobody said it.

    `missing` is 0 unless the value was there in some of the pairs and not in others, so that a value which only the
    fitted pairs had counts as their mean.
    """

    mean: float
    scale: float
    weight: float
    missing: float

    def adds(self, value: float | None) -> float:
        return self.missing if value is None else self.weight * (value - self.mean) / self.scale


@dataclass(frozen=True, slots=True)
class Regression:
    """The probability of being right is the logistic function of `bias` and what each feature adds.

    `n` pairs were fitted, `right` of them right. A feature that no pair had is not there.
    """

    bias: float
    features: dict[str, Feature]
    n: int
    right: int

    def probability(self, confidence: Confidence) -> float:
        """From 0 to 1."""
        said = _values(confidence, self.features)
        total = self.bias + sum(feature.adds(said[name]) for name, feature in self.features.items())
        # Of the two equal forms the one whose exponential cannot overflow.
        return 1 / (1 + math.exp(-total)) if total >= 0 else math.exp(total) / (1 + math.exp(total))


@dataclass(frozen=True, slots=True)
class Calibration:
    """How evidence becomes a score from 0 to 1; a part that no pair was there for is None.

    objects: the probability that an object's mask has IoU > 0.5 with an object that is meant.
    no_object: the probability that nothing fits, where the model said so.
    fitted_on: the split that was answered, as `DataEntry.name` has it; scores of its answers look better than others.
    """

    objects: Regression | None
    no_object: Regression | None
    fitted_on: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which `from_json` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            ValueError: it did not write this.
        """
        if not isinstance(value, dict) or value.keys() != {"objects", "no_object", "fitted_on"}:
            raise ValueError("a calibration has objects, no_object and fitted_on")
        objects, no_object = value["objects"], value["no_object"]
        return cls(
            _regression(objects, OBJECT_FEATURES), _regression(no_object, NO_OBJECT_FEATURES), str(value["fitted_on"])
        )


def scores_of(
    status: str, confidence: Sequence[Confidence], calibration: Calibration | None
) -> tuple[list[float], float | None]:
    """The scores from 0 to 1 of an answer's objects, and of the whole answer.

    An object's is the calibrated probability; where nothing was fitted, SAM's guess of its IoU. A whole answer is no
    surer than the least sure of its objects; of "no_object" its score is the calibrated probability; where nothing was
    fitted, the mean probability of its tokens (the geometric one), None where nobody told it; of any other status it is
    0.
    """
    if status == "ok":
        regression = None if calibration is None else calibration.objects
        scores = [_guessed_iou(each) if regression is None else regression.probability(each) for each in confidence]
        return scores, min(scores, default=0.0)
    if status != "no_object":
        return [], 0.0
    said = confidence[0] if confidence else Confidence()
    if calibration is not None and calibration.no_object is not None:
        return [], calibration.no_object.probability(said)
    return [], None if said.text is None else math.exp(min(said.text, 0.0))


def fit_calibration(objects: Sequence[Pair], no_object: Sequence[Pair], fitted_on: str) -> Calibration | None:
    """The calibration that fits the pairs, which come from the split `fitted_on`; None for no pair at all.

    The same pairs in the same order give the same.
    """
    if not objects and not no_object:
        return None
    return Calibration(
        fit_regression(objects, OBJECT_FEATURES), fit_regression(no_object, NO_OBJECT_FEATURES), fitted_on
    )


def fit_regression(pairs: Sequence[Pair], names: Sequence[str]) -> Regression | None:
    """The regression of the outcome on the values `names` of the evidence; None for no pair.

    The outcomes are Platt's (1999): of n+ right and n- wrong pairs, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) stand for 1
    and 0. So a few pairs make no certainty, and pairs that are all right give (n + 1) / (n + 2), whatever the evidence.
    The weights of the standardised values are held back by half their squared sum, the bias is not.
    """
    if not pairs:
        return None
    said = [_values(confidence, names) for confidence, _ in pairs]
    known = {
        name: np.array([each[name] for each in said if each[name] is not None], dtype=np.float64) for name in names
    }
    features = {
        name: Feature(_short(values.mean()), _short(values.std()) or 1.0, weight=1.0, missing=0.0)
        for name, values in known.items()
        if values.size
    }
    columns = [[feature.adds(each[name]) for each in said] for name, feature in features.items()]
    gaps = [name for name in features if known[name].size < len(pairs)]
    columns += [[float(each[name] is None) for each in said] for name in gaps]
    outcomes = np.array([right for _, right in pairs], dtype=bool)
    inputs = np.stack([np.ones(len(pairs)), *map(np.asarray, columns)], axis=1)
    bias, *weights = map(_short, _minimise(inputs, smoothed(outcomes)))
    missing = dict(zip(gaps, weights[len(features) :], strict=True))
    return Regression(
        bias=bias,
        features={
            name: Feature(feature.mean, feature.scale, weight, missing.get(name, 0.0))
            for (name, feature), weight in zip(features.items(), weights, strict=False)
        },
        n=len(pairs),
        right=int(outcomes.sum()),
    )


def cross_fitted(
    pairs: Sequence[Pair], groups: Sequence[Hashable], names: Sequence[str], folds: int = 5
) -> list[float] | None:
    """Each pair's probability by the regression on the other folds, which says how well one does on new answers.

    Pairs of one group (an image's) are in one fold; the groups go to the folds in turn. None for fewer than two
    groups.
    """
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    fold_of = [order[group] % folds for group in groups]
    if len(order) < 2:
        return None
    found: dict[int, float] = {}
    for fold in range(min(folds, len(order))):
        others = [pair for pair, own in zip(pairs, fold_of, strict=True) if own != fold]
        regression = fit_regression(others, names)
        assert regression is not None
        for place, ((confidence, _), own) in enumerate(zip(pairs, fold_of, strict=True)):
            if own == fold:
                found[place] = regression.probability(confidence)
    return [found[place] for place in range(len(pairs))]


def smoothed(outcomes: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Platt's targets for outcomes (N,) bool; see `fit_regression`."""
    right = int(outcomes.sum())
    wrong = outcomes.size - right
    return np.where(outcomes, (right + 1) / (right + 2), 1 / (wrong + 2))


def _minimise(inputs: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> list[float]:
    """The coefficients (D,) of least log loss of `inputs` (N, D), whose first column is the bias, by Newton's method.

    The loss is convex and, as no target is 0 or 1, has its least value at finite coefficients.
    """
    held = np.ones(inputs.shape[1])
    held[0] = 0.0

    def loss(coefficients: npt.NDArray[np.float64]) -> float:
        logits = inputs @ coefficients
        return float((np.logaddexp(0.0, logits) - targets * logits).sum() + 0.5 * (held * coefficients**2).sum())

    coefficients = np.zeros(inputs.shape[1])
    coefficients[0] = math.log(targets.mean() / (1 - targets.mean()))
    for _ in range(100):
        probabilities = 1 / (1 + np.exp(-np.clip(inputs @ coefficients, -500, 500)))
        slope = inputs.T @ (probabilities - targets) + held * coefficients
        curvature = (inputs * (probabilities * (1 - probabilities))[:, None]).T @ inputs + np.diag(held)
        # Where all is nearly certain the bias has next to no curvature; then this keeps the system solvable.
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(held)), slope)
        length, before = 1.0, loss(coefficients)
        while length > 1e-6 and loss(coefficients - length * step) > before:
            length /= 2
        coefficients = coefficients - length * step
        if float(np.abs(step).max()) < 1e-10:
            break
    return [float(value) for value in coefficients]


def _values(confidence: Confidence, names: Iterable[str]) -> dict[str, float | None]:
    """The named values, as they are written; None where nobody said one, or what was said is no number."""
    told = confidence.to_json()
    return {name: value if (value := told[name]) is not None and math.isfinite(value) else None for name in names}


def _guessed_iou(confidence: Confidence) -> float:
    """SAM's guess, which is not held to be from 0 to 1; what is no number stays none."""
    return 0.0 if confidence.iou is None else min(max(confidence.iou, 0.0), 1.0)


def _short(value: float) -> float:
    # A sum with 0.0, so that no -0.0 is written.
    return round(float(value), _DIGITS) + 0.0


def _regression(value: object, names: Sequence[str]) -> Regression | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("features"), dict):
        raise ValueError(f"a part of a calibration has bias, features, n and right; found {value!r:.80}")
    features = value["features"]
    if unknown := sorted(set(features).difference(names)):
        raise ValueError(f"unknown features: {', '.join(unknown)}")
    try:
        made = Regression(
            bias=_number(value["bias"]),
            features={
                name: Feature(*(_number(parts[key]) for key in ("mean", "scale", "weight", "missing")))
                for name, parts in features.items()
            },
            n=int(value["n"]),
            right=int(value["right"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a part of a calibration is damaged: {error}") from error
    if any(feature.scale <= 0 for feature in made.features.values()):
        raise ValueError("a feature's scale is above 0")
    return made


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number; found {value!r:.40}")
    return float(value)
