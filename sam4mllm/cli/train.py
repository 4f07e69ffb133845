"""`train` and `merge`: subcommands that make a run folder and a merged checkpoint."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.cli.options import (
    add_device_option,
    add_dtype_option,
    add_json_option,
    add_recipe_options,
    positive_float,
)
from sam4mllm.cli.output import STDOUT, write_json
from sam4mllm.cli.overwriting import check_not_recipe_data
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError, LaunchError
from sam4mllm.utils.library_logging import log_to_stderr

if TYPE_CHECKING:
    from sam4mllm.recipe.schema import Recipe


def _train_options(parser: ArgumentParser) -> None:
    add_recipe_options(parser)
    add_device_option(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="load no weights and write nothing: check recipe and data, show the first conversations, count tokens and "
        "steps, estimate memory and time",
    )
    parser.add_argument(
        "--tflops",
        type=positive_float,
        metavar="N",
        help="TFLOP/s that the device sustains, for the estimate of time (default: 125, two fifths of an A100's 312)",
    )
    add_json_option(parser, "also write the figures of the dry run to FILE as one JSON object; - is standard output")


def _train(options: Namespace) -> int:
    with log_to_stderr(logging.INFO) if options.processes.is_main else nullcontext():
        return _train_or_estimate(options)


def _train_or_estimate(options: Namespace) -> int:
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.training.trainer import train

    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        return _dry_run(recipe, options)
    if options.json is not None or options.tflops is not None:
        raise DataError("--json and --tflops are options of a dry run; add --dry-run, or leave them out")
    run = train(recipe, device=options.device, processes=options.processes)
    if options.processes.is_main:
        print(f"{run.path}: trained; try `sam4mllm segment {run.path} IMAGE PHRASE -o out.png`")
    return 0


def _dry_run(recipe: Recipe, options: Namespace) -> int:
    from sam4mllm.training.dry_run import dry_run
    from sam4mllm.training.estimate import DEFAULT_TFLOPS

    if options.processes.world_size > 1:
        raise LaunchError("train --dry-run runs in one process; start it without the launcher")
    check_not_recipe_data(recipe, options.json)
    estimate = dry_run(recipe, tflops=options.tflops or DEFAULT_TFLOPS)
    if options.json != STDOUT:
        print(estimate.summary(), end="")
    write_json(estimate.to_json(), options.json)
    return 0


def _merge_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="a folder that does not exist yet"
    )
    add_dtype_option(parser)
    add_device_option(parser)


def _merge(options: Namespace) -> int:
    from sam4mllm.runs.merge import merge
    from sam4mllm.utils.device import resolve_device

    merged = merge(options.run, options.output, dtype=options.dtype, device=resolve_device(options.device))
    print(f"{merged.path}: merged; try `vllm serve {merged.path}`, then `--server URL` of predict and evaluate")
    return 0


TRAIN = Subcommand(
    "train",
    "fine-tune with LoRA; validates by mask IoU, not by loss alone",
    _train_options,
    _train,
    detail="Resumes from the last checkpoint in the recipe's output folder.",
    distributed=True,
    resumes=True,
)

MERGE = Subcommand(
    "merge",
    "merge a run's adapter into its base model and write the checkpoint, for servers",
    _merge_options,
    _merge,
    detail="Any library loads the folder as a checkpoint, and every other subcommand takes it as RUN.",
)
