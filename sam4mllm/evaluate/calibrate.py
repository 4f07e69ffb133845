"""Calibrating a run that is trained: a held-out split answered, judged, and the run's calibration fitted to it.

    RUN/calibration/DATASET-SPLIT/    the answers, as a batch run keeps them; resumed
    RUN/calibration.json              what was fitted to all of them

What is told of it is measured by cross-fitting: each answer is scored by a calibration that has not seen its image.
Training does the same with its validation's answers (`train/validation.py`). This module trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.predictions import Confidence, PredictionLine, queries_of, read_predictions
from sam4mllm.data.registry import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, ModelError
from sam4mllm.evaluate.reliability import expected_calibration_error
from sam4mllm.evaluate.score import judge
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.runs.calibration import (
    NO_OBJECT_FEATURES,
    OBJECT_FEATURES,
    Calibration,
    Pair,
    cross_fitted,
    fit_calibration,
    scores_of,
)
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar


@dataclass(frozen=True, slots=True)
class Fitted:
    """How well one part of the calibration does: `n` pairs, `right` of them right, and the ECE without and with it.

    `before` is of the scores without calibration, None where an answer has none. `after` is cross-fitted, so as on
    answers that were not fitted, None for pairs of fewer than two images.
    """

    n: int
    right: int
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out: the answers, the calibration that was written, and how well its two parts do."""

    summary: BatchSummary
    calibration: Calibration
    objects: Fitted
    no_object: Fitted

    def to_json(self) -> dict[str, Any]:
        """What `calibrate --json` writes."""
        parts = {"objects": self.objects, "no_object": self.no_object}
        return {
            "predictions": str(self.summary.predictions),
            **{
                name: {"n": part.n, "right": part.right, "ece_before": part.before, "ece_cross_fitted": part.after}
                for name, part in parts.items()
            },
            "calibration": self.calibration.to_json(),
        }

    def text(self) -> str:
        """A line for each part."""
        lines = []
        for name, part in (("objects", self.objects), ('"no object" answers', self.no_object)):
            before, after = ("-" if ece is None else f"{100 * ece:.1f} %" for ece in (part.before, part.after))
            lines.append(
                f"{part.n} {name}, {part.right} right: ECE {before} before, {after} cross-fitted on this split"
            )
        return "\n".join(lines)


def calibrate(
    pipeline: Pipeline,
    run: RunFolder,
    entry: DataEntry,
    output: Path | None = None,
    processes: DistributedContext = SINGLE_PROCESS,
) -> Calibrated | None:
    """Answer the split `entry`, fit the calibration to its answers and write it into `run`.

    None but in the main process. The answers are kept in `output`, by default in the run folder. Several processes
    share the answering.

    Raises:
        DataError: the run was trained on the split; the data cannot be read; `output` holds another job's answers.
        ModelError: no answer to fit to.
    """
    # The recipe's folders may be named from where the training was started, so they tell nothing here.
    if entry.place_in_root in [trained.place_in_root for trained in run.recipe.data.train]:
        raise DataError(f"{entry.name}: {run.path} was trained on it, so its scores would be too sure; choose another")
    samples = read_with_masks(entry)
    output = output or run.path / "calibration" / f"{entry.dataset}-{entry.split_name}"
    queries = queries_of(samples)
    with bar("calibrate", len(queries), unit="phrases", shown=processes.is_main) as advance:
        summary = predict(pipeline.uncalibrated(), queries, output, advance=advance, processes=processes)
    if not processes.is_main:
        return None
    objects, no_object = pairs_of(list(read_predictions(summary.predictions)), samples)
    calibration = fit_calibration([pair for pair, _ in objects], [pair for pair, _ in no_object], entry.name)
    if calibration is None:
        raise ModelError(f"{output}: none of {summary.total} answers could be read, so there is nothing to fit to")
    run.keep_calibration(calibration)
    return Calibrated(
        summary,
        calibration,
        _fitted("ok", objects, OBJECT_FEATURES),
        _fitted("no_object", no_object, NO_OBJECT_FEATURES),
    )


def pairs_of(
    predictions: Sequence[PredictionLine], samples: Sequence[Sample]
) -> tuple[list[tuple[Pair, Path]], list[tuple[Pair, Path]]]:
    """The pairs of objects and of "no object" answers, each with its image, in the order of the samples."""
    # gRefCOCO's rules have a place for all kinds of phrases; only what is right is asked here, and no figure.
    judgement = judge(predictions, samples, dataset="", split="", protocol="grefcoco")
    lines = {line.id: line for line in predictions}
    objects, no_object = [], []
    for sample in samples:
        line = lines.get(sample.id)
        if line is not None and line.status == "ok":
            for item, right in zip(line.objects, judgement.right[line.id], strict=True):
                objects.append(((item.confidence or Confidence(), right), sample.image))
        if line is not None and line.status == "no_object":
            right = not judgement.by_id[line.id].targeted
            no_object.append(((line.confidence or Confidence(), right), sample.image))
    return objects, no_object


def _fitted(status: str, found: Sequence[tuple[Pair, Path]], names: Sequence[str]) -> Fitted:
    pairs = [pair for pair, _ in found]
    right = [fact for _, fact in pairs]
    before: list[float] = []
    for confidence, _ in pairs:
        scores, whole = scores_of(status, [confidence], None)
        before += scores if status == "ok" else [] if whole is None else [whole]
    after = cross_fitted(pairs, [image for _, image in found], names)
    return Fitted(
        n=len(pairs),
        right=sum(right),
        before=expected_calibration_error(before, right) if len(before) == len(right) else None,
        after=None if after is None else expected_calibration_error(after, right),
    )
