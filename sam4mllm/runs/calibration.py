"""Calibration: from the confidences of an answer to the probability that it is correct.

Two small logistic regressions, one for objects (features text, points, iou) and one for "no object" answers (feature
text), are fitted to pairs of confidence and outcome from answers to data that was not trained on. `scores_of`
also defines the scores without a calibration.
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
"""The confidence of an object or an answer, and whether it was correct."""

FEW_PAIRS = 50
"""Below this number of pairs, fitted probabilities depend on the chosen phrases more than on the model."""

OBJECT_FEATURES = ("text", "points", "iou")
NO_OBJECT_FEATURES = ("text",)

_DIGITS = 6
"""Decimals of the fitted numbers, so that they are the same on machines that round sums differently."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One term of the logit: `weight` * (value - `mean`) / `scale`, or `missing` for a missing value.

    `missing` is 0 unless the value was missing in some of the fitted pairs, so that a value which all of them had
    counts as their mean if it is missing later.
    """

    mean: float
    scale: float
    weight: float
    missing: float

    def term(self, value: float | None) -> float:
        """Return the term for a value, or for a missing one."""
        return self.missing if value is None else self.weight * (value - self.mean) / self.scale


@dataclass(frozen=True, slots=True)
class Regression:
    """The probability of being correct is the logistic function of `bias` and the terms of the features.

    `n` pairs were fitted, `right` of them correct. A feature that was missing in all pairs is not in `features`.
    """

    bias: float
    features: dict[str, Feature]
    n: int
    right: int

    def probability(self, confidence: Confidence) -> float:
        """Return the probability, from 0 to 1, that an object or answer of this confidence is correct."""
        values = _values(confidence, self.features)
        logit = self.bias + sum(feature.term(values[name]) for name, feature in self.features.items())
        # Of the two equal forms, the one whose exponential cannot overflow.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The mapping from confidences to scores from 0 to 1; a part that had no pair to be fitted to is None.

    Attributes:
        objects: The probability that an object's mask has IoU > 0.5 with an annotated object.
        no_object: The probability that a "no object" answer is correct.
        fitted_on: The `DataEntry.name` of the split that was answered; scores of its answers are overestimated.
    """

    objects: Regression | None
    no_object: Regression | None
    fitted_on: str

    def note(self) -> str | None:
        """Return a sentence about the parts that were fitted to few pairs; None if each had `FEW_PAIRS` or more."""
        parts = {"objects": self.objects, '"no object" answers': self.no_object}
        few = [f"{each.n} {name}" for name, each in parts.items() if each is not None and each.n < FEW_PAIRS]
        if not few:
            return None
        return (
            f"the calibration was fitted to {' and '.join(few)} of {self.fitted_on}; with fewer than {FEW_PAIRS} its "
            "scores are not reliable as probabilities: run `sam4mllm calibrate` on more phrases"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, from which `from_json` builds an equal calibration."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Calibration:
        """Build the calibration from the value of `to_json`.

        Raises:
            ValueError: The value has another structure.
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
    """Return the scores, from 0 to 1, of an answer's objects, and the score of the complete answer.

    The score of an object is the calibrated probability or, without calibration, SAM's predicted IoU. The score of a
    complete answer is the lowest of its objects. That of a "no object" answer is the calibrated probability or, without
    calibration, the geometric mean of the probabilities of its tokens; None if these are unknown. For any other status
    it is 0.
    """
    if status == "ok":
        regression = None if calibration is None else calibration.objects
        scores = [_predicted_iou(each) if regression is None else regression.probability(each) for each in confidence]
        return scores, min(scores, default=0.0)
    if status != "no_object":
        return [], 0.0
    answer = confidence[0] if confidence else Confidence()
    if calibration is not None and calibration.no_object is not None:
        return [], calibration.no_object.probability(answer)
    return [], None if answer.text is None else math.exp(min(answer.text, 0.0))


def fit_calibration(objects: Sequence[Pair], no_object: Sequence[Pair], fitted_on: str) -> Calibration | None:
    """Fit a calibration to pairs from the split `fitted_on`; None for no pair at all.

    Equal pairs in equal order give an equal calibration.
    """
    if not objects and not no_object:
        return None
    return Calibration(
        fit_regression(objects, OBJECT_FEATURES), fit_regression(no_object, NO_OBJECT_FEATURES), fitted_on
    )


def fit_regression(pairs: Sequence[Pair], names: Sequence[str]) -> Regression | None:
    """Fit the logistic regression of the outcome on the features `names` of the confidence; None for no pair.

    The targets are Platt's (1999): of n+ correct and n- wrong pairs, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) replace 1
    and 0. So a few pairs do not give certainty, and pairs that are all correct give (n + 1) / (n + 2), whatever the
    confidence. The weights of the standardized values have an L2 penalty of half their squared sum, the bias has none.
    """
    if not pairs:
        return None
    # 1. Standardize each feature over the pairs that have it.
    values = [_values(confidence, names) for confidence, _ in pairs]
    known = {
        name: np.array([each[name] for each in values if each[name] is not None], dtype=np.float64) for name in names
    }
    features = {
        name: Feature(_rounded(column.mean()), _rounded(column.std()) or 1.0, weight=1.0, missing=0.0)
        for name, column in known.items()
        if column.size
    }

    # 2. The inputs: the bias, the features, and an indicator for each feature that some pairs lack.
    columns = [[feature.term(each[name]) for each in values] for name, feature in features.items()]
    incomplete = [name for name in features if known[name].size < len(pairs)]
    columns += [[float(each[name] is None) for each in values] for name in incomplete]
    outcomes = np.array([correct for _, correct in pairs], dtype=bool)
    inputs = np.stack([np.ones(len(pairs)), *map(np.asarray, columns)], axis=1)

    # 3. Fit.
    bias, *weights = map(_rounded, _minimize(inputs, smoothed(outcomes)))
    missing = dict(zip(incomplete, weights[len(features) :], strict=True))
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
    """Compute each pair's probability by a regression that was fitted without the pair, as for new answers.

    Pairs of one group (the same image) are in one fold; the groups are assigned to the folds in turn. The
    result is None for fewer than two groups.
    """
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    fold_of = [order[group] % folds for group in groups]
    if len(order) < 2:
        return None
    probabilities: dict[int, float] = {}
    for fold in range(min(folds, len(order))):
        others = [pair for pair, own in zip(pairs, fold_of, strict=True) if own != fold]
        regression = fit_regression(others, names)
        assert regression is not None
        for index, ((confidence, _), own) in enumerate(zip(pairs, fold_of, strict=True)):
            if own == fold:
                probabilities[index] = regression.probability(confidence)
    return [probabilities[index] for index in range(len(pairs))]


def smoothed(outcomes: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return Platt's targets for outcomes (N,) bool; see `fit_regression`."""
    correct = int(outcomes.sum())
    wrong = outcomes.size - correct
    return np.where(outcomes, (correct + 1) / (correct + 2), 1 / (wrong + 2))


def _minimize(inputs: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> list[float]:
    """Return the coefficients (D,) of least penalized log loss by Newton's method with step halving.

    `inputs` is (N, D) with the bias as first column. The loss is convex and, because no target is 0 or 1, its minimum
    is at finite coefficients.
    """
    penalized = np.ones(inputs.shape[1])
    penalized[0] = 0.0

    def loss(coefficients: npt.NDArray[np.float64]) -> float:
        logits = inputs @ coefficients
        return float((np.logaddexp(0.0, logits) - targets * logits).sum() + 0.5 * (penalized * coefficients**2).sum())

    coefficients = np.zeros(inputs.shape[1])
    coefficients[0] = math.log(targets.mean() / (1 - targets.mean()))
    for _ in range(100):
        probabilities = 1 / (1 + np.exp(-np.clip(inputs @ coefficients, -500, 500)))
        gradient = inputs.T @ (probabilities - targets) + penalized * coefficients
        hessian = (inputs * (probabilities * (1 - probabilities))[:, None]).T @ inputs + np.diag(penalized)
        # If all is nearly certain, the bias has almost no curvature; the small diagonal keeps the system solvable.
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(penalized)), gradient)
        length, before = 1.0, loss(coefficients)
        while length > 1e-6 and loss(coefficients - length * step) > before:
            length /= 2
        coefficients = coefficients - length * step
        if float(np.abs(step).max()) < 1e-10:
            break
    return [float(value) for value in coefficients]


def _values(confidence: Confidence, names: Iterable[str]) -> dict[str, float | None]:
    """Return the named values, rounded as they are written; None for those that are missing or not finite."""
    record = confidence.to_json()
    return {name: value if (value := record[name]) is not None and math.isfinite(value) else None for name in names}


def _predicted_iou(confidence: Confidence) -> float:
    """Return SAM's predicted IoU, clipped to 0 to 1; NaN stays NaN."""
    return 0.0 if confidence.iou is None else min(max(confidence.iou, 0.0), 1.0)


def _rounded(value: float) -> float:
    # Adding 0.0 turns -0.0 into 0.0.
    return round(float(value), _DIGITS) + 0.0


def _regression(value: object, names: Sequence[str]) -> Regression | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("features"), dict):
        raise ValueError(f"a part of a calibration has bias, features, n and right; got {value!r:.80}")
    features = value["features"]
    if unknown := sorted(set(features).difference(names)):
        raise ValueError(f"unknown features: {', '.join(unknown)}")
    try:
        regression = Regression(
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
    if any(feature.scale <= 0 for feature in regression.features.values()):
        raise ValueError("a feature's scale must be above 0")
    return regression


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number; got {value!r:.40}")
    return float(value)
