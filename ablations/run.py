"""Run an experiment on the generated data set `shapes` and print its table.

    python ablations/run.py filter --work runs/filter --train 200 --seeds 3 --json runs/filter/table.json
    python ablations/run.py fallback --work runs/fallback --run runs/demo
    python ablations/run.py fallback --work runs/fallback --train 200 --seeds 3
    python ablations/run.py methods --work runs/methods --steps 200 --json ablations/logs/methods.json

Settings of the recipe are given as key=value after the options. Finished work is recognized by the files in --work, so
a stopped experiment resumes. `python ablations/run.py EXPERIMENT --help` describes an experiment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure_fallback
import measure_filter
import measure_methods

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.reading import read_dataset, read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import RecipeError, Sam4mllmError
from sam4mllm.evaluation.score import score_predictions
from sam4mllm.pipeline.batch import predict
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
from sam4mllm.training.trainer import train
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries
from sam4mllm.utils.progress import bar

RECIPE = "shapes_ppg"
LOGS = Path(__file__).parent / "logs"

FILTER = """Measure what the selection of point groups by SAM contributes, under each way of scoring them.

Five variants of the training targets: the top group scored with the exact box, with jittered boxes or without a box; a
random group; the box alone. On the objects of the validation split the table has, for each variant, the mean IoU with
the true mask as the variant scored it, then with the exact box, with other jittered boxes (of another seed, the same
for all rows) and without a box. With --train each variant is trained for the same number of steps on the same data with
the same seed, and the table has the cIoU of the last adapter on that split.
"""
FALLBACK = """Measure where points make masks worse, and whether a fallback to the box alone helps.

Each model answers the validation split of its recipe once. SAM segments the same answers without a fallback and with
each of several (`segmenter.fallback_margin`, `segmenter.fallback_outside`), and for comparison with the box alone, and
with the better of the two by the annotation, which is an upper bound. The table has cIoU, gIoU, and the share of the
masks with points whose points were left out.

--run measures a run folder. --train trains two recipes for the same number of steps on the same data with the same
seed, one with points always, one with points only where they win (`targets.only_winning`), and measures both.
"""
METHODS = """Compare the methods: one base model, the same data, equal training steps, scored on the test splits.

Six variants: the box alone; PPG; PPG with groups of points that SAM did not choose; PQPP with lists of points, and with
one point per question; both methods in one model. Each is trained on the train split and calibrated on the validation
split; the figures are of the test splits (testA and testB together), on which nothing was chosen: cIoU and the
calibration error of RefCOCO's objects before (SAM's predicted IoU) and after, gIoU and N-acc of gRefCOCO, gIoU of
ReasonSeg, the share of malformed answers and the seconds per query of all three. The seconds are left out for a variant
that an earlier, interrupted start answered in part.
"""


@dataclass(frozen=True)
class Experiment:
    """A row of the table of experiments: its description, the function that returns its table, and its options."""

    description: str
    run: Callable[[argparse.Namespace], list[str]]
    add_options: Callable[[argparse.ArgumentParser], None]


def run_filter(options: argparse.Namespace) -> list[str]:
    """Measure the targets of all variants, train each if asked, and return the table."""
    recipes = _recipes(options, measure_filter.VARIANTS)
    recipe = next(iter(recipes.values()))
    device = resolve_device(options.device)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    settings = {variant: TargetSettings.from_recipe(each) for variant, each in recipes.items()}
    objects, rows = measure_filter.measure(_held_out(recipe)[1], segmenter, settings, recipe.targets.store)

    def write() -> None:
        rows_as_json = {variant: vars(row) for variant, row in rows.items()}
        _write_json(options, {"objects": objects, "steps": options.train, "rows": rows_as_json})

    write()
    for variant, trained_recipe in _to_train(options, measure_filter.VARIANTS):
        ciou, malformed = train_and_score(trained_recipe, device)
        rows[variant].ciou.append(ciou)
        rows[variant].malformed.append(malformed)
        write()
    return [f"{objects} held-out objects, percent", *measure_filter.table(rows)]


def train_and_score(recipe: Recipe, device: str) -> tuple[float, float]:
    """Train the recipe and score its last adapter on the validation split: cIoU and the share of malformed answers."""
    entry, samples = _held_out(recipe)
    run = train(recipe, device=device)
    pipeline = Pipeline.from_pretrained(run.path, device=device)
    with bar("answers", len(samples), unit="phrases") as advance:
        summary = predict(pipeline, queries_of(samples), run.path / "held-out", advance=advance)
    lines = read_predictions(summary.predictions)
    scores = score_predictions(lines, samples, dataset=entry.dataset, split=entry.split_name)
    assert scores.ciou is not None
    return scores.ciou, scores.malformed / scores.n


def run_fallback(options: argparse.Namespace) -> list[str]:
    """Measure the run folder, train and measure both recipes if asked, and return the table."""
    if options.run is None and not options.train:
        raise RecipeError("nothing to measure; name a run folder by --run, or train by --train STEPS")
    device = resolve_device(options.device)
    models: dict[str, measure_fallback.Model] = {}

    def measure_run(run: Path, output: Path, name: str) -> None:
        entry, samples = _held_out(RunFolder.open(run).recipe)
        pipeline = Pipeline.from_pretrained(run, device=device, fallback=BoxFallback())
        measure_fallback.measure(pipeline, samples, entry, output, models[name])
        models_as_json = {
            name: {**vars(model), "rows": {key: vars(row) for key, row in model.rows.items()}}
            for name, model in models.items()
            if model.malformed
        }
        _write_json(options, {"steps": options.train, "models": models_as_json})

    if options.run is not None:
        models[options.run.name] = measure_fallback.Model()
        measure_run(options.run, options.work / f"answers-of-{options.run.name}", options.run.name)
    for variant, recipe in _to_train(options, measure_fallback.VARIANTS):
        model = models.setdefault(variant, measure_fallback.Model())
        model.points_beat_box.append(_share_of_winning_points(recipe, device))
        run = train(recipe, device=device)
        measure_run(run.path, recipe.output / "held-out", variant)
    return [*measure_fallback.table(models), "", *measure_fallback.notes(models)]


def _share_of_winning_points(recipe: Recipe, device: str) -> float:
    """Return the share of the recipe's training objects whose points beat the box."""
    samples = read_mixture(recipe.data, recipe.seed).samples
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    targets = compute_targets(samples, segmenter, TargetSettings.from_recipe(recipe), recipe.targets.store).read()
    return sum(map(points_beat_box, targets.values())) / max(len(targets), 1)


def run_methods(options: argparse.Namespace) -> list[str]:
    """Train and measure each method that is not measured already, and return the table."""
    # All of the validation split, because the calibration is fitted to it.
    equal = [f"training.max_steps={options.steps}", "training.validate.every_steps=0"]
    equal += ["training.validate.samples=100000"]
    recipes = _recipes(options, measure_methods.VARIANTS, equal, seed=0)
    data = next(iter(recipes.values())).data.train[0].root
    assert data is not None
    samples = {
        name: [sample for split in splits for sample in read_dataset(name, data, split)]
        for name, splits in measure_methods.TESTS.items()
    }
    device = resolve_device(options.device)

    # Finished rows are kept under the digest of all recipes, as other settings give other rows.
    digest = hashlib.sha256("".join(each.hash() for each in recipes.values()).encode()).hexdigest()[:12]
    kept = options.work / f"rows-{digest}.json"
    finished: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    rows = {name: measure_methods.Row(**row) for name, row in finished.items()}
    for name in measure_methods.VARIANTS:
        if name in rows or (options.only and name not in options.only):
            continue
        output = options.work / f"{_folder_name(name)}-{digest}"
        print(f"{name}: {options.steps} steps", file=sys.stderr, flush=True)
        run = train(recipes[name].model_copy(update={"output": output}), device=device)
        pipeline = Pipeline.from_pretrained(run.path, device=device)
        rows[name] = measure_methods.measure(pipeline, samples, output / "test")
        atomic_write_text(kept, json.dumps({name: asdict(row) for name, row in rows.items()}, indent=2) + "\n")
    rows = {name: rows[name] for name in measure_methods.VARIANTS if name in rows}
    queries = {name: len(each) for name, each in samples.items()}
    rows_as_json = {name: asdict(row) for name, row in rows.items()}
    _write_json(options, {"steps": options.steps, "queries": queries, "rows": rows_as_json})
    return measure_methods.table(rows)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=int, metavar="STEPS", help="also train each variant for STEPS steps")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per variant, with the seeds 0, 1, ...")


def _fallback_options(parser: argparse.ArgumentParser) -> None:
    _training_options(parser)
    parser.add_argument("--run", type=Path, help="a run folder to measure on its own validation split")
    parser.set_defaults(json=LOGS / "fallback.json")


def _methods_options(parser: argparse.ArgumentParser) -> None:
    variants = list(measure_methods.VARIANTS)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training (default: 200)")
    parser.add_argument("--only", action="append", choices=variants, help="this method only; may be repeated")
    # As many scenes as the demo has.
    parser.set_defaults(scenes=160, held_out=40)


EXPERIMENTS = {
    "filter": Experiment(FILTER, run_filter, _training_options),
    "fallback": Experiment(FALLBACK, run_fallback, _fallback_options),
    "methods": Experiment(METHODS, run_methods, _methods_options),
}


def _recipes(
    options: argparse.Namespace,
    variants: Mapping[str, Sequence[str]],
    equal: Sequence[str] = (),
    seed: int | None = None,
) -> dict[str, Recipe]:
    """Return the recipe of each variant, which reads and writes under `options.work`; `seed` is that of the data."""
    if seed is None:
        seed = load_recipe(RECIPE, options.overrides).seed
    data = shapes_in(options.work, options.scenes, options.held_out, seed)
    roots = [f"data.train.{index}.root={data}" for index in range(len(load_recipe(RECIPE).data.train))]
    folders = [*roots, f"data.validation.root={data}", f"targets.store={options.work / 'targets'}"]
    common = [*folders, f"output={options.work}", *equal, *options.overrides]
    return {variant: load_recipe(RECIPE, [*common, *settings]) for variant, settings in variants.items()}


def _to_train(options: argparse.Namespace, variants: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Recipe]]:
    """Yield each variant with its recipe for each seed of --seeds; nothing without --train."""
    for seed in range(options.seeds if options.train else 0):
        for variant, settings in variants.items():
            print(f"{variant}, seed {seed}: {options.train} steps", file=sys.stderr, flush=True)
            output = options.work / f"{_folder_name(variant)}-{options.train}-{seed}"
            equal = (f"training.max_steps={options.train}", f"seed={seed}", "training.validate.every_steps=0")
            yield variant, _recipes(options, {variant: (*settings, *equal, f"output={output}")})[variant]


def _folder_name(variant: str) -> str:
    return variant.replace(",", "").replace(" ", "-")


def _held_out(recipe: Recipe) -> tuple[DataEntry, list[Sample]]:
    entry = recipe.data.validation
    if entry is None:
        raise RecipeError("data.validation: is null; the experiment needs its split")
    return entry, read_with_masks(entry)


def _write_json(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    if options.json is not None:
        record = {"settings": list(options.overrides), "scenes": [options.scenes, options.held_out], **figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(options.json, json.dumps(record, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    subparsers = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, experiment in EXPERIMENTS.items():
        title = experiment.description.splitlines()[0]
        add = subparsers.add_parser(name, help=title, description=experiment.description, formatter_class=raw)
        add.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings that replace {RECIPE}'s")
        add.add_argument("--work", type=Path, required=True, help="folder for data, targets and runs")
        add.add_argument("--scenes", type=int, default=600, help="training scenes (default: %(default)s)")
        add.add_argument("--held-out", type=int, default=120, help="scenes of each other split (default: %(default)s)")
        add.add_argument("--device", default="auto")
        add.add_argument(
            "--json", type=Path, metavar="FILE", help="file for the unrounded figures (default: %(default)s)"
        )
        experiment.add_options(add)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line names."""
    silence_libraries()
    options = _parser().parse_args(arguments)
    try:
        print("\n".join(EXPERIMENTS[options.experiment].run(options)))
    except Sam4mllmError as error:
        sys.exit(f"ablations/run.py {options.experiment}: error: {error}")


if __name__ == "__main__":
    main()
