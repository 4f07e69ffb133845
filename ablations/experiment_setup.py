"""The recipes and data of an experiment by the options of `run.py`, and the file of its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure_methods import SPLITS

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.reading import read_dataset, read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import RecipeError
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.utils.atomic_io import atomic_write_text

RECIPE = "shapes_ppg"
"""The recipe whose settings the rows of the experiments change."""


def options_of_seed(options: argparse.Namespace, seed: int) -> argparse.Namespace:
    """Return the options of one seed, which has its own folder."""
    return argparse.Namespace(**{**vars(options), "work": options.work / f"seed-{seed}"})


def recipes_of(
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


def read_samples(data: Path | None, split: str) -> dict[str, list[Sample]]:
    """Return the held-out samples of each generated data set under `data`; `split` is a key of `SPLITS`."""
    return {
        name: [sample for part in parts for sample in read_dataset(name, data, part)]
        for name, parts in SPLITS[split].items()
    }


def read_validation(recipe: Recipe) -> tuple[DataEntry, list[Sample]]:
    """Return the recipe's entry of validation data, and its samples."""
    entry = recipe.data.validation
    if entry is None:
        raise RecipeError("data.validation: is null; the experiment needs its split")
    return entry, read_with_masks(entry)


def write_figures(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the figures of an experiment to --json, if it is given."""
    if options.json is not None:
        record = {"settings": list(options.overrides), "scenes": [options.scenes, options.held_out], **figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(options.json, json.dumps(record, indent=2) + "\n")
