"""Validation during training: answer, segment and score held-out samples with the pipeline that inference uses.

The loss measures next-token prediction; validation measures the masks. The scores are calibrated on the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam4mllm.data.predictions import Confidence
from sam4mllm.data.reading import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.metrics import Mask, correct_objects, overlap, union_of
from sam4mllm.evaluation.points import PointTally
from sam4mllm.methods.base import Method
from sam4mllm.mllm.constrained_engine import constrains_or_warns
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.calibration import Calibration, Pair, fit_calibration
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.mask_decoder import as_trained
from sam4mllm.training.dataset import spread
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext

_CASES = 4


@dataclass(frozen=True, slots=True)
class ValidationCase:
    """A held-out sample and its result."""

    sample: Sample
    result: Result


@dataclass(frozen=True, slots=True)
class Validation:
    """Metrics on `n` held-out samples.

    Attributes:
        ciou: The sum of intersections over the sum of unions, at the original sizes; 0 where all masks are empty.
        malformed: The fraction of answers that could not be parsed, which count as empty masks.
        n: The number of samples.
        calibration: Fitted to these answers; None where none of them could be parsed.
        points_on: The share of positive points on the object, as in an evaluation; None without such points.
        cases: The first samples of this process with their results, for trackers.
    """

    ciou: float
    malformed: float
    n: int
    calibration: Calibration | None = None
    points_on: float | None = None
    cases: tuple[ValidationCase, ...] = field(default=(), compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """Return the figures without the calibration, for the log."""
        return {"ciou": self.ciou, "malformed": self.malformed, "n": self.n, "points_on": self.points_on}


def validation_samples(recipe: Recipe) -> list[Sample]:
    """Read the samples of the recipe's `data.validation`; none where it is null.

    Raises:
        DataError: The set cannot be read, or a sample has boxes and no masks, so that its mask IoU is undefined.
    """
    return [] if recipe.data.validation is None else read_with_masks(recipe.data.validation)


def make_validator(
    recipe: Recipe,
    method: Method,
    mllm: Mllm,
    segmenter: Segmenter,
    samples: Sequence[Sample],
    processes: DistributedContext = SINGLE_PROCESS,
) -> Callable[[], Validation] | None:
    """Return a function that validates the current weights of `mllm`; None without samples."""
    if not samples or recipe.data.validation is None:
        return None
    settings, name = recipe.training.validation, recipe.data.validation.name
    chosen = spread(samples, settings.samples)
    engine = TransformersEngine(mllm, settings.batch_size)
    pipeline = Pipeline(
        method,
        engine,
        segmenter,
        max_new_tokens=recipe.generation.max_new_tokens,
        image_batch=settings.batch_size,
        constrained=recipe.generation.constrained and constrains_or_warns(engine, method.answer_form),
    )

    def validate_now() -> Validation:
        pipeline.segmenter = as_trained(segmenter, mllm.model)
        return validate(pipeline, chosen, name, processes)

    return validate_now


def validate(
    pipeline: Pipeline, samples: Sequence[Sample], name: str, processes: DistributedContext = SINGLE_PROCESS
) -> Validation:
    """Score `pipeline` on `samples` of the split called `name`, without random numbers.

    Each of several processes takes a part of the samples, and all of them return the metrics of all samples.

    Raises:
        DataError: An image cannot be read, or its size differs from its annotation's.
    """
    # 1. Answer, segment and score the samples of this process.
    part = samples[processes.rank :: processes.world_size]
    results = pipeline([(sample.image, sample.phrase) for sample in part])
    intersection = union = malformed = 0
    answers, points = [], PointTally()
    for sample, result in zip(part, results, strict=True):
        objects = [item.mask() for item in sample.objects]
        predicted, truth = result.mask.cpu().numpy(), union_of(objects, sample.size_wh)
        if predicted.shape != truth.shape:
            raise DataError(
                f"{sample.image}: the image is {predicted.shape} (H, W), the annotation of sample {sample.id} is "
                f"{truth.shape}; one of the two belongs to another data set"
            )
        overlapping = overlap(predicted, truth)
        intersection += overlapping.intersection
        union += overlapping.union
        malformed += result.status == "malformed"
        confidence = [each.to_json() for each in result.confidence or (Confidence(),)]
        answers.append((result.status, confidence, _correct(result, objects, sample)))
        points.add(result.prompts, [item.box for item in sample.objects], objects, sample.ignored())
    positives = sum(each.positives for each in points.matched)
    on = sum(each.positives_on for each in points.matched)
    # 2. Sum over the processes. The counts are integers, so the sums do not depend on how samples were distributed.
    counts = processes.gather([int(intersection), int(union), malformed, positives, on])
    intersection, union, malformed, positives, on = (sum(column) for column in zip(*counts, strict=True))
    gathered = processes.gather(answers)
    # 3. Restore the order of the samples, of which each process had every world_size-th, and fit the calibration.
    ordered = [gathered[index % len(gathered)][index // len(gathered)] for index in range(len(samples))]
    pairs: dict[str, list[Pair]] = {"ok": [], "no_object": [], "malformed": []}
    for status, confidence, correct in ordered:
        pairs[status] += [(Confidence(**each), flag) for each, flag in zip(confidence, correct, strict=True)]
    calibration = fit_calibration(pairs["ok"], pairs["no_object"], name)
    return Validation(
        ciou=intersection / union if union else 0.0,
        malformed=malformed / len(samples),
        n=len(samples),
        calibration=calibration,
        points_on=on / positives if positives else None,
        cases=tuple(ValidationCase(*pair) for pair in zip(part[:_CASES], results[:_CASES], strict=True)),
    )


def _correct(result: Result, truth: Sequence[Mask], sample: Sample) -> tuple[bool, ...]:
    """Return which of the result's objects are correct; without objects, one flag: whether the truth is empty too."""
    if result.status != "ok":
        return (not any(mask.any() for mask in truth),)
    return correct_objects(list(result.masks.cpu().numpy()), truth, sample.ignored())
