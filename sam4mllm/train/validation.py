"""Validation while training: answer, segment and score held-out samples, by the very pipeline that predicts.

Loss says how well the next token is guessed; this says whether the masks get better. It knows nothing of the training
loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluate.metrics import overlap
from sam4mllm.predict.pipeline import Pipeline
from sam4mllm.processes import ALONE, Processes


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures on `n` held-out samples.

    `ciou` is the sum of intersections over the sum of unions, at the original sizes (0 where all are empty);
    `malformed` is the share of answers that could not be read, which count as empty masks.
    """

    ciou: float
    malformed: float
    n: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def validate(pipeline: Pipeline, samples: Sequence[Sample], processes: Processes = ALONE) -> Validation:
    """Figures of `pipeline` on `samples`; draws no random number.

    Several processes take a part of the samples each, and all of them get the figures of the whole.

    Raises:
        DataError: a picture cannot be read, or is not of its annotation's size.
    """
    part = samples[processes.rank :: processes.world_size]
    results = pipeline([(sample.image, sample.phrase) for sample in part])
    intersection = union = malformed = 0
    for sample, result in zip(part, results, strict=True):
        predicted, truth = result.mask.cpu().numpy(), sample.mask()
        if predicted.shape != truth.shape:
            raise DataError(
                f"{sample.image}: the picture is {predicted.shape} (H, W), the annotation of sample {sample.id} is "
                f"{truth.shape}; one of the two belongs to another data set"
            )
        found = overlap(predicted, truth)
        intersection += found.intersection
        union += found.union
        malformed += result.status == "malformed"
    # Whole numbers, so the sum does not depend on how the samples were shared out.
    counts = processes.gather([int(intersection), int(union), malformed])
    intersection, union, malformed = (sum(column) for column in zip(*counts, strict=True))
    return Validation(intersection / union if union else 0.0, malformed / len(samples), len(samples))
