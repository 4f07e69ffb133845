"""FamilyUnderTest: a small checkpoint of a family, with the conversations, training run and logits that checks share.

Models are loaded, trained and run by the code that is used for real checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam4mllm.geometry import Box
from sam4mllm.mllm.loading import Mllm, Quantization, load_mllm
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import (
    LOCATION_TOKEN,
    Conversation,
    LocatedText,
    Location,
    inference_conversation,
    training_conversation,
)
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.collator import Collator
from sam4mllm.training.trainer import fit

STEPS = 10
"""Steps of the training run that several checks share."""

_LORA = {"r": 8, "lora_alpha": 16}


@dataclass(frozen=True)
class TrainedModel:
    """A finished training run: its folder, the losses by step, the model with its adapter, and the optimizer."""

    run: RunFolder
    losses: list[float]
    mllm: Mllm
    optimizer: Any


@dataclass(frozen=True)
class FamilyUnderTest:
    """A checkpoint of a family.

    Attributes:
        model_type: The model type that its config is expected to have.
        base: The checkpoint's folder.
        folder: An empty folder for run folders and files of the checks.
        device: The device that it computes on.
    """

    model_type: str
    base: Path
    folder: Path
    device: str = "cpu"

    @cached_property
    def mllm(self) -> Mllm:
        """The base model, loaded once."""
        return self.load()

    @cached_property
    def trained(self) -> TrainedModel:
        """The model trained with LoRA and default settings; it is trained once."""
        return self.train("run")

    @cached_property
    def conversations(self) -> list[Conversation]:
        """Three training conversations of one or two answers, about images of odd sizes."""
        return [
            training_conversation(
                image, [(f"Where is {index}?", f"[{index}7,2{turn},45,6]") for turn in range(index % 2 + 1)]
            )
            for index, image in enumerate(random_images([(41, 67), (90, 33), (57, 57)]))
        ]

    @cached_property
    def located_conversations(self) -> list[Conversation]:
        """Three training conversations about odd images, with a region in the question and one or two locations."""
        boxes = (Box(0.1, 0.2, 0.5, 0.9), Box(0.6, 0, 1, 0.4))
        question = LocatedText(f"What is like {LOCATION_TOKEN}?", (Location(boxes[0], len("What is like ")),))
        return [
            training_conversation(image, [(question, located_text(boxes[: 1 + index % 2]))])
            for index, image in enumerate(random_images([(41, 67), (90, 33), (57, 57)]))
        ]

    @cached_property
    def questions(self) -> list[Conversation]:
        """Four questions of different lengths, about images of different sizes and aspect ratios."""
        images = random_images([(64, 64), (90, 61), (30, 120), (80, 77)])
        return [inference_conversation(image, "Where is it" + "?" * 7 * index) for index, image in enumerate(images)]

    def load(self, **settings: Any) -> Mllm:
        """Load the base model with the given settings of `load_mllm`."""
        return load_mllm(str(self.base), device=self.device, **settings)

    def train(
        self,
        name: str,
        steps: int = STEPS,
        *,
        quantization: Quantization | None = None,
        lora: dict[str, Any] | None = None,
        tune_projector: bool = False,
        locations: LocationSettings | None = None,
        **arguments: Any,
    ) -> TrainedModel:
        """Train on `conversations` for some steps into the run folder `name`; `arguments` are keys of `training`.

        With `locations`, location heads are trained with the method pix2emb on `located_conversations`.
        """
        from transformers import TrainerCallback

        optimizers: list[Any] = []

        class KeepOptimizer(TrainerCallback):
            def on_step_end(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
                optimizers.append(optimizer)

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
                "model": {"base": str(self.base)},
                "segmenter": {"checkpoint": "shapes"},
                "data": {"train": [{"dataset": "shapes", "root": self.folder, "split": "train"}]},
                "lora": lora or _LORA,
                "training": training,
                **({"method": {"name": "pix2emb", "prompt": "box"}} if locations else {}),
            }
        )
        run = RunFolder.create(recipe)
        base = self.load(quantization=quantization)
        mllm = attach_lora(base, recipe.lora, recipe.seed, tune_projector=tune_projector, locations=locations)
        conversations = self.located_conversations if locations else self.conversations
        fit(mllm, conversations, recipe, run, callbacks=[KeepOptimizer()])
        mllm.model.eval()
        losses = [record["loss"] for record in run.log.read() if "loss" in record]
        return TrainedModel(run, losses, mllm, optimizers[-1])

    def logits(self, model: Any, conversations: Sequence[Conversation] | None = None) -> Any:
        """Return the logits (B, T, V) of `model` on a batch, `self.conversations` for None, in float32 on the CPU."""
        import torch

        batch = Collator(self.mllm)(self.conversations if conversations is None else conversations)
        with torch.no_grad():
            return model(**{name: value.to(self.device) for name, value in batch.items()}).logits.float().cpu()


def located_text(boxes: Sequence[Box]) -> LocatedText:
    """Return an answer of a location token for each box."""
    locations = (Location(box, index * len(LOCATION_TOKEN)) for index, box in enumerate(boxes))
    return LocatedText(LOCATION_TOKEN * len(boxes), tuple(locations))


def random_images(sizes_hw: Sequence[tuple[int, int]]) -> list[npt.NDArray[np.uint8]]:
    """Return images (H, W, 3) of random pixels, the same in each call."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_hw]
