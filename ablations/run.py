"""Run an experiment on the generated data set `shapes` and print its table.

    python ablations/run.py filter --work runs/filter --train 200 --seeds 3 --json runs/filter/table.json
    python ablations/run.py methods --work runs/methods --steps 200 --seeds 3 --json ablations/logs/methods.json
    python ablations/run.py nextchat --work runs/nextchat --steps 300 --seeds 3 --json ablations/logs/nextchat.json
    python ablations/run.py packing --work runs/packing --epochs 1 --seeds 3 --json ablations/logs/packing.json
    python ablations/run.py votes --work runs/votes --json ablations/logs/votes.json

Settings of the recipe are given as key=value after the options. Finished work is recognized by the files in --work, so
a stopped experiment resumes. `python ablations/run.py EXPERIMENT --help` describes an experiment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure_filter
import measure_methods
import measure_nextchat
import measure_packing
import measure_votes
import methods_table
from experiment_setup import RECIPE, options_of_seed, read_samples, read_validation, recipes_of, write_figures
from measure_nextchat import EQUAL_SECONDS, NextchatRow
from methods_rows import Row

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluation.score import score_predictions
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.trainer import train
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries
from sam4mllm.utils.progress import bar


@dataclass(frozen=True)
class Experiment:
    """A row of the table of experiments: its description, the function that returns its table, and its options."""

    description: str
    run: Callable[[argparse.Namespace], list[str]]
    add_options: Callable[[argparse.ArgumentParser], None]


def run_filter(options: argparse.Namespace) -> list[str]:
    """Measure the targets of all variants, train each if asked, and return the table."""
    recipes = recipes_of(options, measure_filter.VARIANTS)
    recipe = next(iter(recipes.values()))
    device = resolve_device(options.device)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    settings = {variant: TargetSettings.from_recipe(each) for variant, each in recipes.items()}
    objects, rows = measure_filter.measure(read_validation(recipe)[1], segmenter, settings, recipe.targets.store)

    def write() -> None:
        rows_as_json = {variant: vars(row) for variant, row in rows.items()}
        write_figures(options, {"objects": objects, "steps": options.train, "rows": rows_as_json})

    write()
    for variant, trained_recipe in _to_train(options, measure_filter.VARIANTS):
        ciou, malformed = train_and_score(trained_recipe, device)
        rows[variant].ciou.append(ciou)
        rows[variant].malformed.append(malformed)
        write()
    return [f"{objects} held-out objects, percent", *measure_filter.table(rows)]


def train_and_score(recipe: Recipe, device: str) -> tuple[float, float]:
    """Train the recipe and score its last adapter on the validation split: cIoU and the share of malformed answers."""
    entry, samples = read_validation(recipe)
    run = train(recipe, device=device)
    pipeline = Pipeline.from_pretrained(run.path, device=device)
    with bar("answers", len(samples), unit="phrases") as advance:
        summary = predict(pipeline, queries_of(samples), run.path / "held-out", advance=advance)
    lines = read_predictions(summary.predictions)
    scores = score_predictions(lines, samples, dataset=entry.dataset, split=entry.split_name)
    assert scores.ciou is not None
    return scores.ciou, scores.malformed / scores.n


def run_methods(options: argparse.Namespace) -> list[str]:
    """Measure each row for each seed unless an earlier start did, and return both tables."""
    device = resolve_device(options.device)
    names = measure_methods.parse_names(options.only) if options.only is not None else measure_methods.ROWS
    rows: dict[str, dict[int, Row]] = {name: {} for name in names}
    queries: dict[int, dict[str, int]] = {}
    for seed in range(options.seeds):
        of_seed = options_of_seed(options, seed)
        # The last adapter is measured, so nothing is validated.
        fixed = (f"seed={seed}", f"training.max_steps={options.steps}", "data.validation=null")
        variants = {name: (*settings, *fixed) for name, settings in measure_methods.VARIANTS.items()}
        recipes = recipes_of(of_seed, variants, seed=seed)
        samples = read_samples(recipes[measure_methods.PPG].data.train[0].root, options.split)
        queries[seed] = {name: len(each) for name, each in samples.items()}
        experiment = measure_methods.SeedExperiment(seed, recipes, samples, options.split, of_seed.work, device)
        for name in names:
            rows[name][seed] = experiment.row(name)
            measured = {name: by_seed for name, by_seed in rows.items() if by_seed}
            figures = {"steps": options.steps, "split": options.split, "queries": queries}
            write_figures(options, {**figures, **methods_table.to_json(measured)})
    return methods_table.tables(rows)


def run_nextchat(options: argparse.Namespace) -> list[str]:
    """Train and measure each row for equal steps, then for equal seconds, unless an earlier start did."""
    names = (*measure_nextchat.VARIANTS, *(name + EQUAL_SECONDS for name in measure_nextchat.VARIANTS))
    rows: dict[str, dict[int, NextchatRow]] = {name: {} for name in names}
    experiments = [_nextchat_of_seed(options, seed) for seed in range(options.seeds)]
    for experiment in experiments:
        for name in measure_nextchat.VARIANTS:
            experiment.seconds_a_step(name)
    for name in names:
        row = name.removesuffix(EQUAL_SECONDS)
        for seed, experiment in enumerate(experiments):
            timed = experiment if row == name else experiment.with_equal_seconds(row)
            rows[name][seed] = timed.nextchat_row(row)
            measured = {name: by_seed for name, by_seed in rows.items() if by_seed}
            figures = {"steps": options.steps, "split": options.split}
            write_figures(options, {**figures, **measure_nextchat.to_json(measured)})
    return measure_nextchat.tables(rows)


def _nextchat_of_seed(options: argparse.Namespace, seed: int) -> measure_nextchat.NextchatExperiment:
    """Return the experiment of one seed, with the seed's own scenes and a recipe for each row."""
    of_seed = options_of_seed(options, seed)
    # The last adapter is measured, so nothing is validated.
    fixed = (f"seed={seed}", f"training.max_steps={options.steps}", "data.validation=null")
    variants = {name: (*settings, *fixed) for name, settings in measure_nextchat.VARIANTS.items()}
    recipes = recipes_of(of_seed, variants, [f"model.base={measure_nextchat.BASE}"], seed)
    data, device = recipes[measure_methods.PPG].data.train[0].root, resolve_device(options.device)
    samples = read_samples(data, options.split)
    return measure_nextchat.NextchatExperiment(seed, recipes, samples, options.split, of_seed.work, device)


def run_packing(options: argparse.Namespace) -> list[str]:
    """Train and measure each row for each seed unless an earlier start did, and return the tables."""
    device = resolve_device(options.device)
    rows: dict[str, dict[int, Row]] = {name: {} for name in measure_packing.VARIANTS}
    trainings: dict[str, dict[int, measure_packing.Training]] = {name: {} for name in measure_packing.VARIANTS}
    for seed in range(options.seeds):
        of_seed = options_of_seed(options, seed)
        # The last adapter is measured, so nothing is validated.
        fixed = (f"seed={seed}", "data.validation=null")
        variants = {name: (*settings, *fixed) for name, settings in measure_packing.ALL.items()}
        plans = {
            name: measure_packing.plan(recipe, options.epochs)
            for name, recipe in recipes_of(of_seed, variants, seed=seed).items()
        }
        recipes = recipes_of(of_seed, {name: (*variants[name], *plans[name][0]) for name in variants}, seed=seed)
        samples = read_samples(recipes[measure_packing.ONE].data.train[0].root, options.split)
        experiment = measure_packing.PackingExperiment(seed, recipes, samples, options.split, of_seed.work, device)
        for name in rows:
            rows[name][seed] = experiment.row(name)
            trainings[name][seed] = replace(plans[name][1], seconds=experiment.seconds(name))
            measured = {name: by_seed for name, by_seed in rows.items() if by_seed}
            write_figures(options, {"split": options.split, **measure_packing.to_json(measured, trainings)})
    return measure_packing.tables(rows, trainings)


def run_votes(options: argparse.Namespace) -> list[str]:
    """Answer with each number of votes for each seed of scenes unless an earlier start did, and return both tables."""
    recipe = load_recipe(RECIPE, options.overrides)
    model: dict[str, Any] = {"model": options.run or recipe.model.base, "device": resolve_device(options.device)}
    model |= {"temperature": options.temperature, "max_new_tokens": recipe.generation.max_new_tokens}
    model |= {} if options.run else {"segmenter": recipe.segmenter.checkpoint}
    rows: dict[str, dict[int, Row]] = {measure_votes.name_of(votes): {} for votes in options.votes}
    for seed in range(options.seeds):
        work = options.work / f"seed-{seed}"
        samples = read_samples(shapes_in(work, options.scenes, options.held_out, seed), options.split)
        for votes in options.votes:
            name, output = measure_votes.name_of(votes), work / f"votes-{votes}-{options.split}"
            row = measure_votes.measure_seed(votes, samples, output, **model)
            rows[name][seed] = row
            figures = {"model": model["model"], "split": options.split, "temperature": options.temperature}
            write_figures(options, {**figures, **measure_votes.to_json({n: r for n, r in rows.items() if r})})
    return measure_votes.tables(rows)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=int, metavar="STEPS", help="also train each variant for STEPS steps")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per variant, with the seeds 0, 1, ...")


def _methods_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training (default: 200)")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, ... of data and training (default: 3)")
    parser.add_argument("--only", metavar="NAMES", help="these rows only, separated by a comma without a space")
    parser.add_argument("--split", choices=list(measure_methods.SPLITS), default="test", help="default: %(default)s")
    # As many scenes as the demo has.
    parser.set_defaults(scenes=160, held_out=40)


def _packing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=1, help="how often each phrase is seen (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, ... of data and training (default: 3)")
    parser.add_argument("--split", choices=list(measure_methods.SPLITS), default="test", help="default: %(default)s")
    parser.set_defaults(scenes=160, held_out=40)


EXPERIMENTS = {
    "filter": Experiment(measure_filter.DESCRIPTION, run_filter, _training_options),
    "methods": Experiment(measure_methods.DESCRIPTION, run_methods, _methods_options),
    "nextchat": Experiment(measure_nextchat.DESCRIPTION, run_nextchat, measure_nextchat.add_options),
    "packing": Experiment(measure_packing.DESCRIPTION, run_packing, _packing_options),
    "votes": Experiment(measure_votes.DESCRIPTION, run_votes, measure_votes.add_options),
}


def _to_train(options: argparse.Namespace, variants: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Recipe]]:
    """Yield each variant with its recipe for each seed of --seeds; nothing without --train."""
    for seed in range(options.seeds if options.train else 0):
        for variant, settings in variants.items():
            print(f"{variant}, seed {seed}: {options.train} steps", file=sys.stderr, flush=True)
            output = options.work / f"{_folder_name(variant)}-{options.train}-{seed}"
            equal = (f"training.max_steps={options.train}", f"seed={seed}", "training.validate.every_steps=0")
            yield variant, recipes_of(options, {variant: (*settings, *equal, f"output={output}")})[variant]


def _folder_name(variant: str) -> str:
    return variant.replace(",", "").replace(" ", "-")


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
