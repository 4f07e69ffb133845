"""Measure SAM's filter on `shapes`: what choosing the taught points by SAM is worth, under each way of judging them.

    python ablations/table_filter.py --work runs/table-filter --train 200 --seeds 3 --json runs/table-filter/table.json

Five ways to teach: the top group judged under the exact box, under jittered boxes or without a box; a random group; the
box alone. On the objects of the validation split the table says, for each, its mean IoU with the truth as it was
judged, then under the exact box, under jittered boxes that judged nobody (drawn with another seed, the same for all
rows) and without a box. With --train it trains each way for the same number of steps on the same data with the same
seed, and adds the cIoU that the models reach on that split; the last adapter counts, never the best one.

Settings of the recipe are given as key=value behind the options. What is done is known from the files in --work, so a
stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from table_data import places

from sam4mllm.data.images import load_image
from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.reading import read_samples
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import RecipeError, Sam4mllmError
from sam4mllm.evaluate.report import text_table
from sam4mllm.evaluate.score import score_predictions
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.targets.prepare import compute_targets, images_of
from sam4mllm.targets.sampling import PointGroups, jittered_boxes, seeded
from sam4mllm.targets.scoring import Candidate, score_groups
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget
from sam4mllm.train.trainer import train
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries
from sam4mllm.utils.progress import bar

RECIPE = "shapes_ppg"
BOX_ALONE = "box alone"
WAYS: dict[str, tuple[str, ...]] = {
    "top, exact box": ("targets.choose=top", "targets.judge=exact"),
    "top, jittered boxes": ("targets.choose=top", "targets.judge=jittered"),
    "top, no box": ("targets.choose=top", "targets.judge=none"),
    "random group": ("targets.choose=random", "targets.judge=exact"),
    BOX_ALONE: ("targets.choose=top", "targets.judge=exact", "method.positives=0", "method.negatives=0"),
}
"""The ways to teach, by their names in the table, and the settings in which they differ."""

JUDGES = ("exact", "jittered", "none")
OTHER_BOXES = 8
"""Jittered boxes per object under which all rows are compared."""


@dataclass
class Row:
    """One way to teach, as means over the objects; IoUs are fractions.

    `judged` is the IoU as the way itself judges; `spread` the standard deviation over an object's groups; `under` the
    IoU under each of `JUDGES` (the box alone has none without a box); `ciou` and `malformed` are those of the models it
    taught, one for each seed.
    """

    judged: float
    spread: float
    under: dict[str, float]
    ciou: list[float] = field(default_factory=list)
    malformed: list[float] = field(default_factory=list)


def measure(
    samples: Sequence[Sample], segmenter: Segmenter, settings: Mapping[str, TargetSettings], store: Path
) -> tuple[int, dict[str, Row]]:
    """How many objects of `samples` every way can teach, and on these the rows of the ways in `settings`.

    Raises:
        RecipeError: no object has a target in every way.
    """
    chosen = {way: compute_targets(samples, segmenter, how, store).read() for way, how in settings.items()}
    shared = set.intersection(*(set(targets) for targets in chosen.values()))
    if not shared:
        raise RecipeError("no object has a target in every way to teach; lower targets.min_iou")
    found: dict[str, dict[str, list[float]]] = {way: {judge: [] for judge in JUDGES} for way in settings}
    images = images_of(samples)
    with bar("judge again", len(images), unit="images") as advance:
        for image in images:
            embedded = segmenter.embed([load_image(image.image)])
            for item in image.objects:
                if item.id in shared:
                    targets = {way: by_id[item.id] for way, by_id in chosen.items()}
                    for way, judge, iou in _judge_again(item, image.size_wh, targets, segmenter, embedded, settings):
                        found[way][judge].append(iou)
            advance()
    rows = {}
    for way, by_id in chosen.items():
        measured = [by_id[name] for name in sorted(shared)]
        under = {judge: fmean(ious) for judge, ious in found[way].items() if ious}
        rows[way] = Row(fmean(each.ious[0] for each in measured), fmean(each.std_iou for each in measured), under)
    return len(shared), rows


def _judge_again(
    item: MaskObject,
    size_wh: tuple[int, int],
    targets: Mapping[str, ObjectTarget],
    segmenter: Segmenter,
    embedded: Any,
    settings: Mapping[str, TargetSettings],
) -> Iterator[tuple[str, str, float]]:
    """(way, judge, IoU) of one object: what each way chose, all under the same boxes."""
    ways = [way for way in targets if way != BOX_ALONE]
    how = settings[ways[0]]
    first = targets[ways[0]].prompts[0].points
    groups = PointGroups(
        np.array([[(p.x, p.y) for p in targets[way].prompts[0].points] for way in ways], dtype=np.float32),
        np.array([point.label for point in first], dtype=np.int64),
    )
    rng = seeded(how.seed, "boxes that judge nobody", item.id)
    exact = np.array([item.box], dtype=np.float32)
    others = jittered_boxes(item.box, size_wh, rng, share=how.jitter, count=OTHER_BOXES)
    for judge, boxes, alone in zip(JUDGES, (exact, others, None), (exact, others, exact), strict=True):
        (scores,) = score_groups(segmenter, embedded, [Candidate(item.mask(), groups, boxes, alone)], how.batch_size)
        for way, iou in zip(ways, scores.ious.tolist(), strict=True):
            yield way, judge, iou
        if BOX_ALONE in targets and judge != "none":
            yield BOX_ALONE, judge, scores.box_iou


def train_and_score(recipe: Recipe, device: str) -> tuple[float, float]:
    """Trains the recipe and scores its last adapter on the validation split: cIoU and the share of malformed."""
    entry = recipe.data.validation
    assert entry is not None
    samples = _held_out(recipe)
    run = train(recipe, device=device)
    pipeline = Pipeline.from_pretrained(run.path, device=device)
    with bar("answers", len(samples), unit="phrases") as advance:
        summary = predict(pipeline, queries_of(samples), run.path / "held-out", advance=advance)
    found = score_predictions(read_predictions(summary.predictions), samples, dataset=entry.dataset, split=entry.split_name)
    assert found.ciou is not None
    return found.ciou, found.malformed / found.n


def table(rows: Mapping[str, Row]) -> list[str]:
    """The rows as text, in percent; the cIoU of several seeds as their mean and range."""
    lines = []
    for way, row in rows.items():
        under = [_percent(row.under[judge]) if judge in row.under else "-" for judge in JUDGES]
        taught = "-"
        if row.ciou:
            taught = _percent(fmean(row.ciou))
            if len(row.ciou) > 1:
                taught += f" ({_percent(min(row.ciou))} to {_percent(max(row.ciou))})"
        lines.append([way, _percent(row.judged), _percent(row.spread), *under, taught, ""])
    titles = ["as judged", "spread", "exact box", "other jittered boxes", "no box", "cIoU taught"]
    return text_table(["taught", *titles, ""], lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _held_out(recipe: Recipe) -> list[Sample]:
    entry = recipe.data.validation
    if entry is None:
        raise RecipeError("data.validation: is null; the table is measured on that split")
    return read_samples(entry)


def _write(options: argparse.Namespace, overrides: Sequence[str], objects: int, rows: Mapping[str, Row]) -> None:
    if options.json is None:
        return
    record = {
        "settings": list(overrides),
        "scenes": [options.scenes, options.held_out],
        "objects": objects,
        "steps": options.train,
        "rows": {way: vars(row) for way, row in rows.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> None:
    """The whole table, as far as it is not done already in `options.work`."""
    seed = load_recipe(RECIPE, options.overrides).seed
    data = shapes_in(options.work, options.scenes, options.held_out, seed)
    common = [*places(RECIPE, options.work, data), *options.overrides]
    recipes = {way: load_recipe(RECIPE, [*common, *how]) for way, how in WAYS.items()}
    recipe = next(iter(recipes.values()))
    device = resolve_device(options.device)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    settings = {way: TargetSettings.from_recipe(each) for way, each in recipes.items()}
    objects, rows = measure(_held_out(recipe), segmenter, settings, recipe.targets.store)
    _write(options, options.overrides, objects, rows)
    for seed in range(options.seeds if options.train else 0):
        for way, how in WAYS.items():
            name = f"{way.replace(',', '').replace(' ', '-')}-{options.train}-{seed}"
            equal = [f"training.max_steps={options.train}", f"seed={seed}", "training.validate.every_steps=0"]
            print(f"{way}, seed {seed}: {options.train} steps", file=sys.stderr, flush=True)
            ciou, malformed = train_and_score(
                load_recipe(RECIPE, [*common, *how, *equal, f"output={options.work / name}"]), device
            )
            rows[way].ciou.append(ciou)
            rows[way].malformed.append(malformed)
            _write(options, options.overrides, objects, rows)
    print(f"{objects} held-out objects, percent")
    print("\n".join(table(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings that replace {RECIPE}'s")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, metavar="STEPS", help="also train each way for so many steps")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each way, with the seeds 0, 1, ...")
    parser.add_argument("--scenes", type=int, default=600, help="training scenes (default: 600)")
    parser.add_argument("--held-out", type=int, default=120, help="scenes to measure on (default: 120)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, not rounded, to FILE")
    try:
        run(parser.parse_args(arguments))
    except Sam4mllmError as error:
        sys.exit(f"table_filter: error: {error}")


if __name__ == "__main__":
    main()
