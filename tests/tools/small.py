"""What the tests of the tables share: a script of `tools/` as a module, and a table small enough for a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.mllm import tiny
from tests.tiny_sam import save_sam


def load_tool(name: str) -> ModuleType:
    """tools/{name}.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def small_table(folder: Path, *more: str) -> list[str]:
    """Arguments for a table in `folder`, on tiny random models and a few phrases of two scenes."""
    tiny.save_fast_vlm(folder / "base", seed=1)
    save_sam(folder / "sam.pth")
    arguments = ["--work", str(folder / "work"), "--scenes", "2", "--held-out", "2", "--device", "cpu"]
    settings = [f"model.base={folder / 'base'}", f"segmenter.checkpoint={folder / 'sam.pth'}", "lora.r=2"]
    settings += ["targets.groups=4", "training.per_device_train_batch_size=2", "training.validate.samples=2"]
    settings += ["generation.max_new_tokens=4", "data.validation.limit=4"]
    settings += [f"data.train.{index}.limit=4" for index in range(3)]
    return [*arguments, "--json", str(folder / "table.json"), *more, *settings]
