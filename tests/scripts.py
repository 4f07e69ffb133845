"""Import a script outside the package as a module, and the arguments of an experiment small enough for a test."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.testing import save_tiny_mllm, save_tiny_sam

SCRIPTS = tuple(Path(__file__).parents[1] / name for name in ("tools", "toy_models", "benchmarks", "ablations"))


def load_script(name: str) -> ModuleType:
    """Import the script with its folder first on the path, as when Python runs it."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in SCRIPTS:
            patch.syspath_prepend(folder)
        return importlib.import_module(name)


def small_experiment(name: str, folder: Path, *more: str) -> list[str]:
    """Return the arguments of ablations/run.py for an experiment on tiny random models and a few phrases."""
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    save_tiny_sam(folder / "sam.pth")
    arguments = [name, "--work", str(folder / "work"), "--scenes", "2", "--held-out", "2", "--device", "cpu"]
    settings = [f"model.base={folder / 'base'}", f"segmenter.checkpoint={folder / 'sam.pth'}", "lora.r=2"]
    settings += ["targets.groups=4", "training.per_device_train_batch_size=2", "training.validate.samples=2"]
    settings += ["generation.max_new_tokens=4", "data.validation.limit=4"]
    settings += [f"data.train.{index}.limit=4" for index in range(3)]
    return [*arguments, "--json", str(folder / "table.json"), *more, *settings]
