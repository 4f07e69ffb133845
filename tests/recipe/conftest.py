"""A small recipe, and the problems that `load_recipe` reports about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.errors import RecipeError
from sam4mllm.recipe.loading import load_recipe

SMALL = """
output: runs/small
model: {base: shapes}
segmenter: {checkpoint: shapes}
data:
  train:
    - {dataset: refcoco, root: data, split: train}
    - {dataset: grefcoco, root: data, split: train}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def problems(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]
