"""Subject: a tiny model of one family, and what several checks of it share: conversations, a training, logits.

All of it goes through the code that real checkpoints go through. This module judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sam4mllm.mllm.loading import Mllm, Quantization, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import Conversation, asking, teaching
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.train.collator import Collator
from sam4mllm.train.trainer import fit

STEPS = 10
"""Steps of the training that the checks share."""

_LORA = {"r": 8, "lora_alpha": 16}


@dataclass(frozen=True)
class Training:
    """A finished training: its run folder, the losses by step, and the model as it was left."""

    run: RunFolder
    losses: list[float]
    mllm: Mllm
    optimiser: Any


@dataclass(frozen=True)
class Subject:
    """A tiny model of `model_type`, saved in `folder / "base"`; it is computed on `device`."""

    model_type: str
    folder: Path
    device: str

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    @cached_property
    def mllm(self) -> Mllm:
        return self.load()

    @cached_property
    def training(self) -> Training:
        """LoRA as a recipe without further settings trains it."""
        return self.train("run")

    def load(self, **settings: Any) -> Mllm:
        return load_mllm(self.base, device=self.device, **settings)

    def train(
        self,
        name: str,
        steps: int = STEPS,
        *,
        quantization: Quantization | None = None,
        lora: dict[str, Any] | None = None,
        tune_projector: bool = False,
        **arguments: Any,
    ) -> Training:
        """A training of `steps` steps on `conversations`, in the run folder `name`."""
        from transformers import TrainerCallback

        kept: dict[str, Any] = {}

        class KeepOptimiser(TrainerCallback):
            def on_step_end(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
                kept["optimiser"] = optimizer

        training = {
            "max_steps": steps,
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **arguments,
        }
        recipe = Recipe.model_validate(
            {
                "output": self.folder / name,
                "model": {"base": self.base},
                "segmenter": {"checkpoint": "shapes"},
                "data": {"train": [{"dataset": "shapes", "root": self.folder, "split": "train"}]},
                "lora": lora or _LORA,
                "training": training,
            }
        )
        run = RunFolder.create(recipe)
        loaded = self.load(quantization=quantization)
        mllm = attach_lora(loaded, recipe.lora, recipe.seed, tune_projector=tune_projector)
        fit(mllm, self.lessons, recipe, run, callbacks=[KeepOptimiser()])
        mllm.model.eval()
        losses = [record["loss"] for record in run.log.read() if "loss" in record]
        return Training(run, losses, mllm, kept["optimiser"])

    @cached_property
    def lessons(self) -> list[Conversation]:
        """Three conversations of one and two answers, about images of odd sizes."""
        return [
            teaching(image, [(f"Where is {index}?", f"[{index}7,2{turn},45,6]") for turn in range(index % 2 + 1)])
            for index, image in enumerate(images([(41, 67), (90, 33), (57, 57)]))
        ]

    @cached_property
    def questions(self) -> list[Conversation]:
        """Four questions of different lengths, about images of different sizes and shapes."""
        sizes = [(64, 64), (90, 61), (30, 120), (80, 77)]
        return [asking(image, "Where is it" + "?" * 7 * i) for i, image in enumerate(images(sizes))]

    def logits(self, model: Any) -> Any:
        """Logits (B, T, V) of `model` on the lessons as one batch, in float32 on the CPU."""
        import torch

        batch = Collator(self.mllm)(self.lessons)
        with torch.no_grad():
            return model(**{name: value.to(self.device) for name, value in batch.items()}).logits.float().cpu()


def images(sizes_hw: Sequence[tuple[int, int]]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Images (H, W, 3) uint8 of random pixels."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_hw]
