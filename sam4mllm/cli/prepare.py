"""`prepare` and `inspect`: subcommands about the training targets of a recipe."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import add_device_option, add_json_option, add_limit_option, add_recipe_options
from sam4mllm.cli.output import STDOUT, write_json
from sam4mllm.cli.overwriting import check_not_recipe_data
from sam4mllm.cli.subcommand import Subcommand


def _prepare_options(parser: ArgumentParser) -> None:
    add_recipe_options(parser)
    add_device_option(parser)
    add_json_option(parser)


def _prepare(options: Namespace) -> int:
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.training.prepare import prepare_targets

    recipe = load_recipe(options.recipe, options.overrides)
    check_not_recipe_data(recipe, options.json)
    prepared = prepare_targets(recipe, device=options.device, processes=options.processes)
    if options.processes.is_main:
        if options.json != STDOUT:
            print(prepared.summary(), end="")
        write_json(prepared.to_json(), options.json)
    return 0


def _inspect_options(parser: ArgumentParser) -> None:
    add_recipe_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: inspect/ in the recipe's output folder")
    add_limit_option(parser, "samples on the page (default: 60)", default=60)
    add_device_option(parser)


def _inspect(options: Namespace) -> int:
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.training.inspect import inspect_targets

    recipe = load_recipe(options.recipe, options.overrides)
    print(inspect_targets(recipe, options.output, limit=options.limit, device=options.device))
    return 0


PREPARE = Subcommand(
    "prepare",
    "compute the training targets: read the data sets, score groups of points with SAM, store the best",
    _prepare_options,
    _prepare,
    detail="Resumes interrupted work. With an unchanged recipe nothing is computed twice.",
    distributed=True,
    resumes=True,
)

INSPECT = Subcommand(
    "inspect",
    "draw the training targets: mask, box, chosen points, IoU, and the exact text of the conversations",
    _inspect_options,
    _inspect,
    detail="Writes a page (index.html) and one image per sample. Targets of these samples that are not stored yet are "
    "computed.",
)
