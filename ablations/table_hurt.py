"""Measure what points do to masks on `shapes`: where they hurt, and whether falling back on the box alone pays.

    python ablations/table_hurt.py --work runs/table-hurt --run runs/demo
    python ablations/table_hurt.py --work runs/table-hurt --train 200 --seeds 3

Each model is asked once about the validation split of its recipe. From the same answers SAM then draws the masks
without a fallback and with each of several (`segmenter.fallback_margin`, `segmenter.fallback_outside`), and for
comparison with the box alone everywhere, and with the better of the two by the truth, which no rule can beat. The
table says cIoU, gIoU, and the share of the masks with points whose points were left out.

--run measures a run folder. --train trains two recipes for so many steps on the same data with the same seed and
measures both: points taught always, and only where they win (`targets.only_winning`). Settings of the recipe are given
as key=value behind the options. What is trained and answered is known from the files in --work, so a stopped run goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from table_data import places

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.images import load_image
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import PredictionLine, Query, queries_of, read_predictions
from sam4mllm.data.reading import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import RecipeError, Sam4mllmError
from sam4mllm.evaluate.score import ScoredPredictions, score_sentences
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.lines import prediction_line
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.fallback import BoxFallback
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.targets.filter import points_beat_box
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.train.trainer import train
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries
from sam4mllm.utils.progress import Advance, bar

RECIPE = "shapes_ppg"
LOG = Path(__file__).parent / "logs" / "table_hurt.json"
LESSONS = {
    "points always": ("targets.only_winning=false",),
    "points where they win": ("targets.only_winning=true",),
}
"""What is taught, by its name in the table, and the setting in which the recipes differ."""

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
    """One way to draw the masks of a model's answers: fractions from 0 to 1, one for each seed it was trained with.

    `replaced` is the share of the answers' masks with points that were drawn without them, 0 where no answer has any.
    """

    ciou: list[float] = field(default_factory=list)
    giou: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)


@dataclass
class Model:
    """What a model was taught and does, one value for each seed, and its rows by the name of the fallback.

    `points_beat_box` is the share of the training objects whose points beat the box, empty for a run that is only
    asked; `malformed` the share of its answers that cannot be parsed; `with_points` the share of the answered objects
    that have points.
    """

    points_beat_box: list[float] = field(default_factory=list)
    malformed: list[float] = field(default_factory=list)
    with_points: list[float] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=lambda: {name: Row() for name in ROWS})


def measure(pipeline: Pipeline, samples: Sequence[Sample], entry: DataEntry, output: Path, model: Model) -> None:
    """Asks `pipeline` about `samples`, with its answers in `output`, and adds what is found to `model`."""
    with bar("answers", len(samples), unit="phrases") as advance:
        summary = predict(pipeline, queries_of(samples), output, advance=advance)
    said = {line.id: line for line in read_predictions(summary.predictions)}
    named = [item.prompt for line in said.values() for item in line.objects]
    pointed = sum(prompt is not None and bool(prompt.points) for prompt in named)
    model.malformed.append(summary.malformed / summary.total)
    model.with_points.append(pointed / max(len(named), 1))

    drawn: dict[str, list[PredictionLine]] = {name: [] for name in ROWS if name != BETTER}
    with bar("draw again", len(samples), unit="phrases") as advance:
        for again in draw_again(pipeline, queries_of(samples), said, advance):
            for name, line in again.items():
                drawn[name].append(line)
    judged = {name: _judge(lines, samples, entry) for name, lines in drawn.items()}
    better = [
        alone if judged[BOX_ALONE].by_id[line.id].iou > judged[NEVER].by_id[line.id].iou else line
        for line, alone in zip(drawn[NEVER], drawn[BOX_ALONE], strict=True)
    ]
    drawn[BETTER], judged[BETTER] = better, _judge(better, samples, entry)
    for name, lines in drawn.items():
        scores, row = judged[name].scores, model.rows[name]
        assert scores.ciou is not None and scores.giou is not None
        row.ciou.append(scores.ciou)
        row.giou.append(scores.giou)
        row.replaced.append(sum(map(_left_out, lines)) / max(pointed, 1))


def draw_again(
    pipeline: Pipeline, queries: Sequence[Query], said: Mapping[str, PredictionLine], advance: Advance
) -> Iterator[dict[str, PredictionLine]]:
    """Each query's line under each fallback and with the box alone; no model is asked but the segmenter."""
    pipelines = {
        name: Pipeline(pipeline.method, pipeline.engine, pipeline.segmenter, fallback=fallback)
        for name, fallback in FALLBACKS.items()
    }
    for query in queries:
        line = said[query.id]
        prompts = tuple(item.prompt for item in line.objects if item.prompt is not None)
        alone = tuple(SamPrompt(prompt.box) if prompt.box is not None else prompt for prompt in prompts)
        again = dict.fromkeys((*FALLBACKS, BOX_ALONE), line)
        if prompts and line.status == "ok":
            image = load_image(query.image)
            for name in again:
                given = alone if name == BOX_ALONE else prompts
                drawer = pipelines[NEVER if name == BOX_ALONE else name]
                with torch.no_grad():
                    (result,) = drawer.segment([image], [0], [Answer("ok", given, line.answer or "")])
                if name == BOX_ALONE:
                    result = replace(result, box_alone=tuple(bool(prompt.points) for prompt in prompts))
                again[name] = prediction_line(query, result)
        advance(1)
        yield again


def _left_out(line: PredictionLine) -> int:
    """How many of the line's masks were drawn without the points that were said."""
    return sum(item.box_alone is True for item in line.objects)


def _judge(lines: Sequence[PredictionLine], samples: Sequence[Sample], entry: DataEntry) -> ScoredPredictions:
    return score_sentences(lines, samples, dataset=entry.dataset, split=entry.split_name)


def table(models: Mapping[str, Model]) -> list[str]:
    """The rows as Markdown, in percent; the figures of several seeds as their mean and range."""
    lines = ["| model | falls back on the box | cIoU | gIoU | points left out |", "|---|---|---|---|---|"]
    for name, model in models.items():
        for fallback, row in model.rows.items():
            if row.ciou:
                figures = " | ".join(map(_percent, (row.ciou, row.giou, row.replaced)))
                lines.append(f"| {name} | {fallback} | {figures} |")
    return lines


def notes(models: Mapping[str, Model]) -> list[str]:
    """One line on each model: what it was taught, and what its answers are like."""
    lines = []
    for name, model in models.items():
        if model.malformed:
            said = f"{name}: {_percent(model.with_points)} % of the objects that it names have points, "
            said += f"{_percent(model.malformed)} % of its answers are malformed"
            if model.points_beat_box:
                said += f"; points beat the box for {_percent(model.points_beat_box)} % of the objects it learned from"
            lines.append(said)
    return lines


def _percent(fractions: Sequence[float]) -> str:
    shown = f"{100 * fmean(fractions):.2f}"
    if len(fractions) > 1:
        shown += f" ({100 * min(fractions):.2f} to {100 * max(fractions):.2f})"
    return shown


def _held_out(recipe: Recipe) -> tuple[DataEntry, list[Sample]]:
    entry = recipe.data.validation
    if entry is None:
        raise RecipeError("data.validation: is null; the table is measured on that split")
    return entry, read_with_masks(entry)


def _share_that_wins(recipe: Recipe, device: str) -> float:
    """Of the objects that the recipe teaches, the share whose points beat the box."""
    samples = read_mixture(recipe.data, recipe.seed).samples
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    targets = compute_targets(samples, segmenter, TargetSettings.from_recipe(recipe), recipe.targets.store).read()
    return sum(map(points_beat_box, targets.values())) / max(len(targets), 1)


def _write(options: argparse.Namespace, models: Mapping[str, Model]) -> None:
    record = {
        "settings": list(options.overrides),
        "scenes": [options.scenes, options.held_out],
        "steps": options.train,
        "models": {
            name: {**vars(model), "rows": {key: vars(row) for key, row in model.rows.items()}}
            for name, model in models.items()
            if model.malformed
        },
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _measure_run(run: Path, output: Path, device: str, model: Model) -> None:
    entry, samples = _held_out(RunFolder.open(run).recipe)
    pipeline = Pipeline.from_pretrained(run, device=device, fallback=BoxFallback())
    measure(pipeline, samples, entry, output, model)


def _train_and_measure(options: argparse.Namespace, device: str, models: dict[str, Model]) -> None:
    seed = load_recipe(RECIPE, options.overrides).seed
    data = shapes_in(options.work, options.scenes, options.held_out, seed)
    common = [*places(RECIPE, options.work, data), *options.overrides]
    for seed in range(options.seeds):
        for name, how in LESSONS.items():
            folder = options.work / f"{name.replace(' ', '-')}-{options.train}-{seed}"
            equal = [f"training.max_steps={options.train}", f"seed={seed}", "training.validate.every_steps=0"]
            recipe = load_recipe(RECIPE, [*common, *how, *equal, f"output={folder}"])
            model = models.setdefault(name, Model())
            model.points_beat_box.append(_share_that_wins(recipe, device))
            print(f"{name}, seed {seed}: {options.train} steps", file=sys.stderr, flush=True)
            run = train(recipe, device=device)
            _measure_run(run.path, folder / "held-out", device, model)
            _write(options, models)


def run(options: argparse.Namespace) -> None:
    """The whole table, as far as it is not done already in `options.work`."""
    if options.run is None and not options.train:
        raise RecipeError("nothing to measure; name a run folder by --run, or train by --train STEPS")
    device = resolve_device(options.device)
    models: dict[str, Model] = {}
    if options.run is not None:
        name = options.run.name
        models[name] = Model()
        _measure_run(options.run, options.work / f"answers-of-{name}", device, models[name])
        _write(options, models)
    if options.train:
        _train_and_measure(options, device, models)
    print("\n".join([*table(models), "", *notes(models)]))


def main(arguments: Sequence[str] | None = None) -> None:
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings that replace {RECIPE}'s")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run folder to measure on its own validation split")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train both recipes for so many steps, measure them")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each recipe, with the seeds 0, 1, ...")
    parser.add_argument("--scenes", type=int, default=600, help="training scenes (default: 600)")
    parser.add_argument("--held-out", type=int, default=120, help="scenes to measure on (default: 120)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=LOG, metavar="FILE", help=f"the figures, not rounded: {LOG.name}")
    try:
        run(parser.parse_args(arguments))
    except Sam4mllmError as error:
        sys.exit(f"table_hurt: error: {error}")


if __name__ == "__main__":
    main()
