"""Experiment "methods": the figures of a method on the test splits."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.reliability import reliability_report
from sam4mllm.evaluation.score import ScoredPredictions, score_sentences
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.runs.calibration import scores_of
from sam4mllm.utils.progress import bar

VARIANTS: dict[str, tuple[str, ...]] = {
    "box alone": ("method.positives=0", "method.negatives=0"),
    "PPG": (),
    "PPG, random group": ("targets.choose=random",),
    "PQPP, lists": ("method.name=pqpp",),
    "PQPP, single": ("method.name=pqpp", "method.form=single"),
    "both": ("method.name=both",),
}
"""The methods by their names in the table, and the settings in which they differ."""

TESTS = {"refcoco": ("testA", "testB"), "grefcoco": ("testA", "testB"), "reasonseg": ("test",)}
"""The splits that are scored together, by data set."""


@dataclass(frozen=True)
class Row:
    """A method's figures: fractions from 0 to 1.

    `ece_before` is the calibration error of SAM's predicted IoU as the score, None if no object has a score.
    `seconds_a_query` is None if an earlier start had answered a part of the queries.
    """

    res_ciou: float | None
    res_acc_50: float | None
    gres_giou: float | None
    gres_n_acc: float | None
    reason_giou: float | None
    malformed: float
    points_an_object: float
    seconds_a_query: float | None
    ece_before: float | None
    ece_after: float | None


def measure(pipeline: Pipeline, samples: dict[str, list[Sample]], output: Path) -> Row:
    """Predict all samples by the pipeline, with its answers in `output`, and score them."""
    # 1. Predictions and scores of each data set.
    lines: dict[str, list[PredictionLine]] = {}
    scored: dict[str, ScoredPredictions] = {}
    from_the_start = not output.exists()
    seconds = 0.0
    for name, samples_of_set in samples.items():
        start = time.perf_counter()
        with bar(name, len(samples_of_set), unit="phrases") as advance:
            summary = predict(pipeline, queries_of(samples_of_set), output / name, advance=advance)
        seconds += time.perf_counter() - start
        lines[name] = list(read_predictions(summary.predictions))
        scored[name] = score_sentences(lines[name], samples_of_set, dataset=name, split="test")

    # 2. Figures over all of them.
    all_lines = [line for lines_of_set in lines.values() for line in lines_of_set]
    objects = [item for line in all_lines for item in line.objects]
    points = sum(len(item.prompt.points) for item in objects if item.prompt is not None)
    scores = {name: each.scores for name, each in scored.items()}

    # 3. Calibration of RefCOCO's scores, before and after.
    after = reliability_report(lines["refcoco"], scored["refcoco"]).objects
    before = reliability_report([_uncalibrated(line) for line in lines["refcoco"]], scored["refcoco"]).objects
    return Row(
        res_ciou=scores["refcoco"].ciou,
        res_acc_50=scores["refcoco"].acc_50,
        gres_giou=scores["grefcoco"].giou,
        gres_n_acc=scores["grefcoco"].n_acc,
        reason_giou=scores["reasonseg"].giou,
        malformed=sum(each.malformed for each in scores.values()) / len(all_lines),
        points_an_object=points / max(len(objects), 1),
        seconds_a_query=seconds / len(all_lines) if from_the_start else None,
        ece_before=None if before is None else before.ece,
        ece_after=None if after is None else after.ece,
    )


def _uncalibrated(line: PredictionLine) -> PredictionLine:
    """Return the line with the scores of a run without calibration."""
    confidence = [item.confidence for item in line.objects if item.confidence is not None]
    scores, _ = scores_of(line.status, confidence, None)
    objects = tuple(replace(item, score=score) for item, score in zip(line.objects, scores, strict=True))
    return replace(line, objects=objects)


def table(rows: dict[str, Row]) -> list[str]:
    """Return the rows as Markdown, in percent except for points and seconds."""
    titles = "RES cIoU | Acc@0.5 | gRES gIoU | N-acc | Reason gIoU | malformed | points | s/query | ECE before | after"
    lines = [f"| | {titles} |", "|---" * 11 + "|"]
    for name, row in rows.items():
        figures = ["-" if value is None else f"{100 * value:.1f}" for value in asdict(row).values()]
        seconds = "-" if row.seconds_a_query is None else f"{row.seconds_a_query:.3f}"
        figures[6:8] = f"{row.points_an_object:.1f}", seconds
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines
