"""Experiment "fallback": the masks of the same answers with and without a fallback to the box alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.images import load_image
from sam4mllm.data.predictions import PredictionLine, Query, queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.score import ScoredPredictions, score_sentences
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import prediction_line
from sam4mllm.segmenters.fallback import BoxFallback
from sam4mllm.utils.progress import Advance, bar

VARIANTS: dict[str, tuple[str, ...]] = {"PPG": ()}
"""The model that --train trains, by its name in the table, and the settings in which its recipe differs."""

NEVER = "never"
FALLBACKS = {
    NEVER: BoxFallback(),
    "margin 0": BoxFallback(margin=0.0),
    "margin 0.02": BoxFallback(margin=0.02),
    "margin 0.05": BoxFallback(margin=0.05),
    "margin 0.1": BoxFallback(margin=0.1),
    "outside 0.02": BoxFallback(outside=0.02),
    "outside 0.1": BoxFallback(outside=0.1),
    "outside 0.3": BoxFallback(outside=0.3),
    "margin 0.05, outside 0.1": BoxFallback(margin=0.05, outside=0.1),
}
BOX_ALONE = "box alone"
BETTER = "the better, by the truth"
ROWS = (*FALLBACKS, BOX_ALONE, BETTER)


@dataclass
class Row:
    """One way to segment a model's answers: fractions from 0 to 1, one for each seed of the training.

    `replaced` is the share of the answers' masks with points that were segmented without them, 0 if no answer has any.
    """

    ciou: list[float] = field(default_factory=list)
    giou: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)


@dataclass
class Model:
    """The figures of a model, one for each seed, and its rows by the name of the fallback.

    `points_beat_box` is the share of the training objects whose points beat the box, empty for a run that was not
    trained here; `malformed` the share of the answers that cannot be parsed; `with_points` the share of the answered
    objects that have points.
    """

    points_beat_box: list[float] = field(default_factory=list)
    malformed: list[float] = field(default_factory=list)
    with_points: list[float] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=lambda: {name: Row() for name in ROWS})


def measure(pipeline: Pipeline, samples: Sequence[Sample], entry: DataEntry, output: Path, model: Model) -> None:
    """Answer `samples` by `pipeline`, with its predictions in `output`, and add the figures of each row to `model`."""
    # 1. The model's answers.
    with bar("answers", len(samples), unit="phrases") as advance:
        summary = predict(pipeline, queries_of(samples), output, advance=advance)
    answers = {line.id: line for line in read_predictions(summary.predictions)}
    prompts = [item.prompt for line in answers.values() for item in line.objects]
    pointed = sum(prompt is not None and bool(prompt.points) for prompt in prompts)
    model.malformed.append(summary.malformed / summary.total)
    model.with_points.append(pointed / max(len(prompts), 1))

    # 2. The masks of these answers under each fallback.
    by_row: dict[str, list[PredictionLine]] = {name: [] for name in ROWS if name != BETTER}
    with bar("segment again", len(samples), unit="phrases") as advance:
        for lines_of_query in segment_again(pipeline, queries_of(samples), answers, advance):
            for name, line in lines_of_query.items():
                by_row[name].append(line)

    # 3. Their scores; the upper bound takes the better mask of each query, by the annotation.
    scored = {name: _score(lines, samples, entry) for name, lines in by_row.items()}
    by_row[BETTER] = [
        alone if scored[BOX_ALONE].by_id[line.id].iou > scored[NEVER].by_id[line.id].iou else line
        for line, alone in zip(by_row[NEVER], by_row[BOX_ALONE], strict=True)
    ]
    scored[BETTER] = _score(by_row[BETTER], samples, entry)
    for name, lines in by_row.items():
        scores, row = scored[name].scores, model.rows[name]
        assert scores.ciou is not None and scores.giou is not None
        row.ciou.append(scores.ciou)
        row.giou.append(scores.giou)
        row.replaced.append(sum(map(_masks_without_points, lines)) / max(pointed, 1))


def segment_again(
    pipeline: Pipeline, queries: Sequence[Query], answers: Mapping[str, PredictionLine], advance: Advance
) -> Iterator[dict[str, PredictionLine]]:
    """Yield each query's line under each fallback and with the box alone; only the segmenter is run."""
    pipelines = {
        name: Pipeline(pipeline.method, pipeline.engine, pipeline.segmenter, fallback=fallback)
        for name, fallback in FALLBACKS.items()
    }
    for query in queries:
        line = answers[query.id]
        prompts = tuple(item.prompt for item in line.objects if item.prompt is not None)
        boxes = tuple(SamPrompt(prompt.box) if prompt.box is not None else prompt for prompt in prompts)
        by_row = dict.fromkeys((*FALLBACKS, BOX_ALONE), line)
        if prompts and line.status == "ok":
            image = load_image(query.image)
            for name in by_row:
                box_alone = name == BOX_ALONE
                answer = Answer("ok", boxes if box_alone else prompts, line.answer or "")
                with torch.no_grad():
                    (result,) = pipelines[NEVER if box_alone else name].segment([image], [0], [answer])
                if box_alone:
                    result = replace(result, box_alone=tuple(bool(prompt.points) for prompt in prompts))
                by_row[name] = prediction_line(query, result)
        advance(1)
        yield by_row


def _masks_without_points(line: PredictionLine) -> int:
    """Return how many of the line's masks were segmented without the points of the answer."""
    return sum(item.box_alone is True for item in line.objects)


def _score(lines: Sequence[PredictionLine], samples: Sequence[Sample], entry: DataEntry) -> ScoredPredictions:
    return score_sentences(lines, samples, dataset=entry.dataset, split=entry.split_name)


def table(models: Mapping[str, Model]) -> list[str]:
    """Return the rows as Markdown, in percent; the figures of several seeds as their mean and range."""
    lines = ["| model | fallback to the box | cIoU | gIoU | points left out |", "|---|---|---|---|---|"]
    for name, model in models.items():
        for fallback, row in model.rows.items():
            if row.ciou:
                figures = " | ".join(map(_percent, (row.ciou, row.giou, row.replaced)))
                lines.append(f"| {name} | {fallback} | {figures} |")
    return lines


def notes(models: Mapping[str, Model]) -> list[str]:
    """Return a line on each model: its training targets and its answers."""
    lines = []
    for name, model in models.items():
        if model.malformed:
            note = f"{name}: {_percent(model.with_points)} % of the answered objects have points, "
            note += f"{_percent(model.malformed)} % of the answers are malformed"
            if model.points_beat_box:
                note += f"; points beat the box for {_percent(model.points_beat_box)} % of the training objects"
            lines.append(note)
    return lines


def _percent(fractions: Sequence[float]) -> str:
    text = f"{100 * fmean(fractions):.2f}"
    if len(fractions) > 1:
        text += f" ({100 * min(fractions):.2f} to {100 * max(fractions):.2f})"
    return text
