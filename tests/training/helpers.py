"""Helpers of the tests of training: a small recipe, conversations, a training that can be interrupted, adapters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import Conversation, training_conversation
from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.trainer import fit
from sam4mllm.training.validation import Validation
from sam4mllm.utils.atomic_io import atomic_write_text

RECIPE = """
seed: 3
output: {output}
model: {{base: {base}}}
segmenter: {{checkpoint: none.pth}}
data:
  train: [{{dataset: shapes, root: {output}, split: train}}]
lora: {{r: 4, lora_alpha: 8, lora_dropout: 0.1}}
training:
  max_steps: 8
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  lr_scheduler_type: cosine
  warmup_steps: 2
  save_steps: 2
  logging_steps: 1
  validate: {{every_steps: 2}}
"""


def make_recipe(folder: Path, base: str, *overrides: str) -> Recipe:
    """Write and read a recipe; the processes of a launcher may do so in one folder at the same time."""
    file = folder / "recipe.yaml"
    atomic_write_text(file, RECIPE.format(output=folder / "run", base=base))
    return load_recipe(file, overrides)


def make_conversations(count: int = 6) -> list[Conversation]:
    """Images of random pixels, each with one to three phrases, so that rows differ in length."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [
        training_conversation(image, [(f"Where is {index}?", f"[{index},2,{turn},4]") for turn in range(index % 3 + 1)])
        for index, image in enumerate(images)
    ]


class StopAt(TrainerCallback):
    """Interrupts as Ctrl-C would: right after step `step`, or for None as training ends."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step is None:
            raise KeyboardInterrupt


class KillAt(TrainerCallback):
    """Kills the process right after step `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_killed(call: str) -> None:
    """Run a training, a call in Python with `stop=KillAt(step)`, in a process of its own, which it kills."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.training.helpers import KillAt, make_recipe, run_fit
from tests.training.located import fit_located
{call}
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def run_fit(
    recipe: Recipe,
    *,
    stop: TrainerCallback | None = None,
    validate: Callable[[], Validation] | None = None,
    conversations: Sequence[Conversation] | None = None,
) -> RunFolder:
    """Train `conversations`, by default `make_conversations()`, with a new adapter, or resume the run."""
    run = RunFolder.create(recipe)
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, recipe.seed)
    fit(
        mllm,
        make_conversations() if conversations is None else conversations,
        recipe,
        run,
        validate=validate,
        callbacks=[stop] if stop else [],
    )
    return run


def validations(*ciou: float) -> Callable[[], Validation]:
    """A validation that returns these cIoU in turn, then the last one again and again."""
    left = list(ciou)
    return lambda: Validation(left.pop(0) if len(left) > 1 else left[0], 0.0, 4)


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)
