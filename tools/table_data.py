"""What the tables' scripts share: the generated data they measure on, and where a recipe reads and writes it.

This module measures nothing.
"""

from __future__ import annotations

from pathlib import Path

from sam4mllm.data.shapes.writer import write_dataset
from sam4mllm.progress import bar
from sam4mllm.recipe import load_recipe


def shapes_in(work: Path, scenes: int, held_out: int, seed: int = 0) -> Path:
    """The folder below `work` with so many scenes to train on and `held_out` each to validate and test on."""
    data = work / f"shapes-{scenes}-{held_out}"
    if not data.is_dir():
        with bar("scenes", scenes + 2 * held_out) as advance:
            write_dataset(data, scenes=scenes, held_out=held_out, seed=seed, advance=advance)
    return data


def places(recipe: str, work: Path, data: Path) -> list[str]:
    """The settings that put all that the recipe reads and writes under `work`, its data sets under `data`."""
    entries = range(len(load_recipe(recipe).data.train))
    roots = [f"data.train.{index}.root={data}" for index in entries] + [f"data.validation.root={data}"]
    return [*roots, f"targets.store={work / 'targets'}", f"output={work}"]
