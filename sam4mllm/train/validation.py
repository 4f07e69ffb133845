"""Validation while training: answer, segment and score held-out samples, by the very pipeline that predicts.

Loss says how well the next token is guessed; this says whether the masks get better. The same answers calibrate the
scores. It knows nothing of the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.data.predictions import Confidence
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluate.metrics import Mask, overlap, right_objects, union_of
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result
from sam4mllm.runs.calibration import Calibration, Pair, fit_calibration
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures on `n` held-out samples.

    `ciou` is the sum of intersections over the sum of unions, at the original sizes (0 where all are empty);
    `malformed` is the share of answers that could not be read, which count as empty masks. `calibration` fits these
    answers; None where none of them could be read.
    """

    ciou: float
    malformed: float
    n: int
    calibration: Calibration | None = None

    def record(self) -> dict[str, Any]:
        """The figures alone, for the log."""
        return {"ciou": self.ciou, "malformed": self.malformed, "n": self.n}


def validate(
    pipeline: Pipeline, samples: Sequence[Sample], name: str, processes: DistributedContext = SINGLE_PROCESS
) -> Validation:
    """Figures of `pipeline` on `samples` of the split `name`; draws no random number.

    Several processes take a part of the samples each, and all of them get the figures of the whole.

    Raises:
        DataError: an image cannot be read, or is not of its annotation's size.
    """
    part = samples[processes.rank :: processes.world_size]
    results = pipeline([(sample.image, sample.phrase) for sample in part])
    intersection = union = malformed = 0
    said = []
    for sample, result in zip(part, results, strict=True):
        objects = [item.mask() for item in sample.objects]
        predicted, truth = result.mask.cpu().numpy(), union_of(objects, sample.size_wh)
        if predicted.shape != truth.shape:
            raise DataError(
                f"{sample.image}: the image is {predicted.shape} (H, W), the annotation of sample {sample.id} is "
                f"{truth.shape}; one of the two belongs to another data set"
            )
        found = overlap(predicted, truth)
        intersection += found.intersection
        union += found.union
        malformed += result.status == "malformed"
        confidence = [each.to_json() for each in result.confidence or (Confidence(),)]
        said.append((result.status, confidence, _right(result, objects, sample)))
    # Whole numbers, so the sum does not depend on how the samples were shared out.
    counts = processes.gather([int(intersection), int(union), malformed])
    intersection, union, malformed = (sum(column) for column in zip(*counts, strict=True))
    everything = processes.gather(said)
    # In the order of the samples, of which each process had every world_size-th.
    ordered = [everything[index % len(everything)][index // len(everything)] for index in range(len(samples))]
    pairs: dict[str, list[Pair]] = {"ok": [], "no_object": [], "malformed": []}
    for status, confidence, right in ordered:
        pairs[status] += [(Confidence(**each), fact) for each, fact in zip(confidence, right, strict=True)]
    calibration = fit_calibration(pairs["ok"], pairs["no_object"], name)
    return Validation(intersection / union if union else 0.0, malformed / len(samples), len(samples), calibration)


def _right(result: Result, truth: Sequence[Mask], sample: Sample) -> tuple[bool, ...]:
    """Which of the result's objects are right, or, as the only one, whether its "no_object" is."""
    if result.status != "ok":
        return (not any(mask.any() for mask in truth),)
    return right_objects(list(result.masks.cpu().numpy()), truth, sample.ignored())
