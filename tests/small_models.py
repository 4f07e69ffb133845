"""What the tests of the tables share: a script of `tools/` as a module, and a table small enough for a test."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.testing import save_tiny_mllm, save_tiny_sam

SCRIPTS = tuple(Path(__file__).parents[1] / name for name in ("tools", "toy_models", "benchmarks", "ablations"))


def load_tool(name: str) -> ModuleType:
    """The script as Python finds it when it is started: with its own folder first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in SCRIPTS:
            patch.syspath_prepend(folder)
        return importlib.import_module(name)


def small_table(folder: Path, *more: str) -> list[str]:
    """Arguments for a table in `folder`, on tiny random models and a few phrases of two scenes."""
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    save_tiny_sam(folder / "sam.pth")
    arguments = ["--work", str(folder / "work"), "--scenes", "2", "--held-out", "2", "--device", "cpu"]
    settings = [f"model.base={folder / 'base'}", f"segmenter.checkpoint={folder / 'sam.pth'}", "lora.r=2"]
    settings += ["targets.groups=4", "training.per_device_train_batch_size=2", "training.validate.samples=2"]
    settings += ["generation.max_new_tokens=4", "data.validation.limit=4"]
    settings += [f"data.train.{index}.limit=4" for index in range(3)]
    return [*arguments, "--json", str(folder / "table.json"), *more, *settings]
