"""What the tables' scripts share: the generated data they measure on, and where a recipe reads and writes it.

This module measures nothing.
"""

from __future__ import annotations

from pathlib import Path

from sam4mllm.recipe.loading import load_recipe


def places(recipe: str, work: Path, data: Path) -> list[str]:
    """The settings that put all that the recipe reads and writes under `work`, its data sets under `data`."""
    entries = range(len(load_recipe(recipe).data.train))
    roots = [f"data.train.{index}.root={data}" for index in entries] + [f"data.validation.root={data}"]
    return [*roots, f"targets.store={work / 'targets'}", f"output={work}"]
