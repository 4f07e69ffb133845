"""Folders for whole runs by the command line: a recipe, a tiny MLLM, a tiny SAM and a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam4mllm.testing import save_tiny_mllm, save_tiny_sam
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances, write_noise, write_refs

FOUR_REFS = [ref(n, 10 * n, n, "train" if n < 4 else "val", f"thing {n}", "the only thing") for n in range(1, 5)]
"""Three training images and a validation image, with two phrases each."""


TINY_RECIPE = """
output: {home}/run
model: {{base: {home}/base}}
segmenter: {{checkpoint: {home}/sam.pth}}
data:
  train: [{{dataset: refcoco, root: {home}/data, split: train}}]
  validation: {{dataset: refcoco, root: {home}/data, split: val}}
"""
"""The beginning of a recipe for `write_tiny_home`: its models and its data."""


def write_tiny_home(folder: Path, recipe: str, refs: Sequence[dict[str, Any]] = FOUR_REFS) -> Path:
    """Write models, recipe.yaml, in which `{home}` is the folder, and a RefCOCO with an image for each of `refs`."""
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    save_tiny_sam(folder / "sam.pth")
    data, numbers = folder / "data", [each["image_id"] for each in refs]
    write_instances(
        data / "refcoco",
        [image_record(number, 60, 40) for number in numbers],
        [annotation(10 * number, number, x=5 + number, y=6, width=20, height=15) for number in numbers],
    )
    write_refs(data / "refcoco", refs)
    write_noise(data, numbers)
    (folder / "recipe.yaml").write_text(recipe.format(home=folder))
    return folder


def tiny_settings(folder: Path) -> list[str]:
    """Write models to `folder`, and return the settings by which a recipe of a documentation page runs on them."""
    return [
        f"model.base={save_tiny_mllm('fast_vlm', folder / 'base', seed=1)}",
        f"segmenter.checkpoint={save_tiny_sam(folder / 'sam.pth')}",
        "training.max_steps=2",
        "training.validate.every_steps=0",
        "training.validate.samples=2",
        "targets.groups=2",
        "generation.max_new_tokens=6",
    ]
