"""The calibrate stage: fit the calibration of a trained run to its answers on a held-out split.

    RUN/calibration/DATASET-SPLIT/    the answers, as a batch job writes them; resumed
    RUN/calibration.json              the calibration fitted to all of them

Its quality is measured by cross-fitting: each answer is scored by a calibration that was fitted without its image.
Training calibrates on the answers of its validation in the same way (`training/validation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from sam4mllm.data.entry import DataEntry, data_entry
from sam4mllm.data.predictions import Confidence, PredictionLine, queries_of, read_predictions
from sam4mllm.data.reading import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, ModelError
from sam4mllm.evaluation.reliability import expected_calibration_error
from sam4mllm.evaluation.score import score_sentences
from sam4mllm.evaluation.suite import DataOptions
from sam4mllm.mllm.loading import DType
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
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import bar


@dataclass(frozen=True, slots=True)
class FitQuality:
    """The quality of one part of a calibration on its `n` pairs, of which `correct` are correct.

    `ece_before` is the ECE (a fraction) of the scores without calibration; None if an answer has no score.
    `ece_cross_fitted` is that of cross-fitted scores, which estimates the ECE on new answers; None for pairs of fewer
    than two images.
    """

    n: int
    correct: int
    ece_before: float | None
    ece_cross_fitted: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the part's entry in `calibrate --json`."""
        return {
            "n": self.n,
            "right": self.correct,
            "ece_before": self.ece_before,
            "ece_cross_fitted": self.ece_cross_fitted,
        }


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The answers that were used, the calibration that was written, and the quality of its two parts."""

    summary: BatchSummary
    calibration: Calibration
    objects: FitQuality
    no_object: FitQuality

    def to_json(self) -> dict[str, Any]:
        """Return what `calibrate --json` writes."""
        return {
            "predictions": str(self.summary.predictions),
            "objects": self.objects.to_json(),
            "no_object": self.no_object.to_json(),
            "calibration": self.calibration.to_json(),
            "note": self.calibration.note(),
        }

    def report(self) -> str:
        """Return a line of text for each part, and a note if a part was fitted to few answers."""
        lines = []
        for name, part in (("objects", self.objects), ('"no object" answers', self.no_object)):
            before, after = (
                "-" if ece is None else f"{100 * ece:.1f} %" for ece in (part.ece_before, part.ece_cross_fitted)
            )
            lines.append(
                f"{part.n} {name}, {part.correct} correct: ECE {before} before, {after} cross-fitted on this split"
            )
        note = self.calibration.note()
        return "\n".join([*lines, *([f"note: {note}"] if note else [])])


def calibrate(
    run: str | Path | RunFolder,
    *,
    dataset: str,
    split: str | None = None,
    root: str | Path | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    batch_size: int | None = None,
    processes: DistributedContext = SINGLE_PROCESS,
    **options: Unpack[DataOptions],
) -> CalibrationResult:
    """Predict a held-out split with a run, fit the calibration to the answers, and write it into the run folder.

    Args:
        run: A run folder.
        dataset, split, root, options: The split, as in `read_dataset`.
        output: The folder of the answers; None for RUN/calibration/DATASET-SPLIT.
        device, dtype, batch_size: As in `Pipeline.from_pretrained`.
        processes: The processes that share the predictions; the main one alone writes the calibration.

    Raises:
        DataError: The run was trained on the split; the data cannot be read; `output` contains another job's answers.
        ModelError: `run` is not a run folder, or no answer could be parsed.
        LaunchError: Another job writes to the run folder or to `output`.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    entry = data_entry(dataset, root=root, split=split, **options)
    refuse_training_split(run, entry)
    pipeline = Pipeline.from_pretrained(run.path, None, device=device, dtype=dtype, batch_size=batch_size)
    folder = run.path / "calibration" / f"{entry.dataset}-{entry.split_name}" if output is None else Path(output)
    with folder_lock(run.path, "calibrating", active=processes.is_main):
        return calibrate_pipeline(pipeline, run, entry, folder, processes)


def refuse_training_split(run: RunFolder, entry: DataEntry) -> None:
    """Raise a DataError if the run was trained on the split."""
    # The paths in the recipe may be relative to the folder that training was started in, so roots are not compared.
    if entry.location_in_root in [trained.location_in_root for trained in run.recipe.data.train]:
        raise DataError(
            f"{entry.name}: {run.path} was trained on it, so its scores would be too high; choose another split"
        )


def calibrate_pipeline(
    pipeline: Pipeline,
    run: RunFolder,
    entry: DataEntry,
    output: Path,
    processes: DistributedContext = SINGLE_PROCESS,
) -> CalibrationResult:
    """Calibrate `pipeline`, which is that of `run`, on the split `entry`; see `calibrate`."""
    samples = processes.compute_on_machine(lambda: read_with_masks(entry))
    queries = queries_of(samples)
    with bar("calibrate", len(queries), unit="phrases", shown=processes.is_main) as advance:
        summary = predict(pipeline.uncalibrated(), queries, output, advance=advance, processes=processes)
    objects, no_object = labeled_confidences(list(read_predictions(summary.predictions)), samples)
    calibration = fit_calibration([pair for pair, _ in objects], [pair for pair, _ in no_object], entry.name)
    if calibration is None:
        raise ModelError(
            f"{output}: none of {summary.total} answers could be parsed, so there is nothing to fit a calibration to"
        )
    if processes.is_main:
        run.write_calibration(calibration)
    return CalibrationResult(
        summary,
        calibration,
        _fit_quality("ok", objects, OBJECT_FEATURES),
        _fit_quality("no_object", no_object, NO_OBJECT_FEATURES),
    )


def labeled_confidences(
    predictions: Sequence[PredictionLine], samples: Sequence[Sample]
) -> tuple[list[tuple[Pair, Path]], list[tuple[Pair, Path]]]:
    """Return the (confidence, correct) pairs of objects and of "no object" answers, each with its image.

    They are in the order of the samples.
    """
    # The protocol of gRefCOCO is defined for all kinds of phrases; only what is correct is used here, no metric.
    scored = score_sentences(predictions, samples, dataset="", split="", protocol="grefcoco")
    lines = {line.id: line for line in predictions}
    objects, no_object = [], []
    for sample in samples:
        line = lines.get(sample.id)
        if line is not None and line.status == "ok":
            for item, correct in zip(line.objects, scored.correct[line.id], strict=True):
                objects.append(((item.confidence or Confidence(), correct), sample.image))
        if line is not None and line.status == "no_object":
            correct = not scored.by_id[line.id].targeted
            no_object.append(((line.confidence or Confidence(), correct), sample.image))
    return objects, no_object


def _fit_quality(status: str, labeled: Sequence[tuple[Pair, Path]], features: Sequence[str]) -> FitQuality:
    pairs = [pair for pair, _ in labeled]
    correct = [fact for _, fact in pairs]
    before: list[float] = []
    for confidence, _ in pairs:
        scores, answer_score = scores_of(status, [confidence], None)
        before += scores if status == "ok" else [] if answer_score is None else [answer_score]
    after = cross_fitted(pairs, [image for _, image in labeled], features)
    return FitQuality(
        n=len(pairs),
        correct=sum(correct),
        ece_before=expected_calibration_error(before, correct) if len(before) == len(correct) else None,
        ece_cross_fitted=None if after is None else expected_calibration_error(after, correct),
    )
