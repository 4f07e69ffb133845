"""What the verbs that make data, targets and models do: read the inputs, call one stage, print, return the exit status.

Every function takes the verb's options and returns 0, or 1 when part of the work came out as errors. What they need is
imported late, so that a verb loads only what it uses. Of several processes that share a verb's work
(`options.processes`) the main one alone prints and writes figures. The verbs that answer are in `answer_commands.py`.
This module knows no algorithm.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sam4mllm.cli.inputs import (
    check_not_read,
    samples_of,
    targets_of,
    write_json,
)
from sam4mllm.errors import DataError, LaunchError, RecipeError

if TYPE_CHECKING:
    from sam4mllm.recipe.schema import Recipe


def demo(options: Namespace) -> int:
    """The whole way on what travels with the package."""
    from sam4mllm.demo import run_demo

    run_demo(options.output, full=options.full)
    return 0


def prepare(options: Namespace) -> int:
    """The targets of a recipe's training data."""
    from statistics import fmean

    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.evaluate.metrics import RIGHT_ABOVE
    from sam4mllm.methods.of_recipe import reads_targets
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.targets.filter import points_beat_box

    recipe = load_recipe(options.recipe, options.overrides)
    if not reads_targets(recipe):
        raise RecipeError(f"{options.recipe}: {recipe.method.name} teaches no targets of SAM's; go on with train")
    mixture = read_mixture(recipe.data, recipe.seed)
    store = targets_of(recipe, mixture.samples, options)
    if not options.processes.is_main:
        return 0
    by_id = store.read()
    targets = list(by_id.values())
    won = sum(map(points_beat_box, targets))
    boxes = len({item.id for sample in mixture.samples for item in sample.objects if item.rle is None})
    missed = sorted((target.ious[0], key) for key, target in by_id.items() if target.ious[0] < RIGHT_ABOVE)
    figures = {
        "store": str(store.path),
        "objects": len(targets),
        "skipped": len(store.skipped()),
        "points_beat_box": won,
    }
    figures |= {"boxes_alone": boxes, "below_half": len(missed)}
    means = {
        "iou_chosen": fmean(target.ious[0] for target in targets) if targets else None,
        "iou_box_alone": fmean(target.box_iou for target in targets) if targets else None,
        "iou_random_group": fmean(target.mean_iou for target in targets) if targets else None,
    }
    if options.json != "-":
        print("\n".join(mixture.leakage_lines()))
        print(f"{len(targets)} objects with a target, {figures['skipped']} without, in {store.path}")
        if targets:
            print("mean " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()))
            print(f"points beat the box for {won} of them ({won / len(targets):.0%})")
        if boxes:
            print(f"{boxes} objects have a box and no mask; they are taught their box alone")
        if missed:
            worst, key = missed[0]
            print(
                f"{len(missed)} objects stay below IoU {RIGHT_ABOVE} whatever SAM is told, the worst at {worst:.2f} "
                f"({key}); targets.min_iou leaves them out"
            )
    write_json({**figures, **means}, options.json)
    return 0


def inspect(options: Namespace) -> int:
    """A page of what a recipe teaches, spread evenly over its training data.

    Only what is shown is computed. An object's targets depend on the object alone, so they are those of `prepare`.
    """
    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.methods.of_recipe import method_of, reads_targets
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.targets.filter import select_targets
    from sam4mllm.train.dataset import spread
    from sam4mllm.train.inspect import write_page
    from sam4mllm.utils.progress import bar

    recipe = load_recipe(options.recipe, options.overrides)
    method = method_of(recipe)
    samples = spread(read_mixture(recipe.data, recipe.seed).samples, options.limit)
    store = targets_of(recipe, samples if reads_targets(recipe) else [], options)
    output = options.output or recipe.output / "inspect"
    with bar("draw", len(samples), unit="phrases") as advance:
        page = write_page(
            samples,
            select_targets(store.read(), only_winning=recipe.targets.only_winning),
            method,
            output,
            title=f"What {options.recipe} teaches",
            reasons=store.skipped(),
            advance=advance,
        )
    print(page)
    return 0


def train(options: Namespace) -> int:
    """A recipe's training, to the end of it; or a look at what it would do and need."""
    import logging

    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.train.trainer import train as train_recipe

    if options.processes.is_main:
        log = logging.getLogger("sam4mllm")
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())
    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        return _dry_run(recipe, options)
    if options.json is not None or options.tflops is not None:
        raise DataError("--json and --tflops are about what a dry run finds; add --dry-run, or leave them out")
    run = train_recipe(recipe, device=options.device, processes=options.processes)
    if options.processes.is_main:
        print(f"{run.path}: trained; try `sam4mllm segment {run.path} IMAGE PHRASE -o out.png`")
    return 0


def _dry_run(recipe: Recipe, options: Namespace) -> int:
    from sam4mllm.train.dry_run import dry_run
    from sam4mllm.train.dry_run_report import as_text
    from sam4mllm.train.estimate import DEFAULT_TFLOPS

    if options.processes.world_size > 1:
        raise LaunchError("train --dry-run runs in one process; leave the launcher out")
    found = dry_run(recipe, tflops=options.tflops or DEFAULT_TFLOPS)
    if options.json != "-":
        print(as_text(found), end="")
    write_json(found.to_json(), options.json)
    return 0


def shapes(options: Namespace) -> int:
    """The generated data set, to a folder."""
    from sam4mllm.synthetic.writer import write_dataset

    write_dataset(options.directory, scenes=options.scenes, seed=options.seed)
    print(options.directory)
    return 0


def convert(options: Namespace) -> int:
    """Any data set of samples, as a JSONL of data of one's own."""
    from sam4mllm.data.readers.jsonl import write_jsonl

    for source in (options.path, options.phrases):
        check_not_read(options.output, source, "is the file that is converted; give -o another")
    samples = samples_of(options)
    write_jsonl(samples, options.output)
    print(f"{options.output}: {len(samples)} phrases about {len({sample.image for sample in samples})} images")
    return 0


def doctor(options: Namespace) -> int:
    """The checks of families and segmenters; the status is 1 when one fails."""
    from sam4mllm.doctor.examine import examine
    from sam4mllm.doctor.report import any_failed, as_markdown, as_text

    record = examine(options.only, options.device)
    if options.json != "-":
        print(as_markdown(record) if options.markdown else as_text(record), end="")
    write_json(record, options.json)
    return 1 if any_failed(record["families"], record["segmenters"]) else 0


def merge(options: Namespace) -> int:
    """A run's model and adapter as one checkpoint."""
    from sam4mllm.runs.merge import merge as merge_run
    from sam4mllm.runs.run_folder import RunFolder
    from sam4mllm.utils.device import resolve_device

    device = resolve_device(options.device)
    merged = merge_run(RunFolder.open(options.run), options.output, dtype=options.dtype, device=device)
    print(f"{merged.path}: merged; try `vllm serve {merged.path}`, then `--server URL` of predict and evaluate")
    return 0
