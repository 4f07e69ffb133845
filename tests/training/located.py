"""Helpers of the tests of the losses of locations: conversations with locations, and a training of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from sam4mllm.data.masks import encode
from sam4mllm.geometry import Box
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import (
    LOCATION_TOKEN,
    Conversation,
    LocatedText,
    Location,
    Turn,
    isolated_conversation,
    training_conversation,
)
from sam4mllm.recipe.loading import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from sam4mllm.training.trainer import fit
from sam4mllm.utils.distributed import SINGLE_PROCESS
from tests.training.helpers import make_recipe

PIX2EMB = "method={name: pix2emb}"


def location(box: Box, start: int, size_wh: tuple[int, int] | None = None) -> Location:
    """Return a location at `start`, with the box as its mask if `size_wh` is given."""
    if size_wh is None:
        return Location(box, start)
    mask = np.zeros(size_wh[::-1], dtype=bool)
    x1, y1, x2, y2 = (round(share * length) for share, length in zip(box, size_wh * 2, strict=True))
    mask[y1:y2, x1:x2] = True
    return Location(box, start, encode(mask))


def marked(text: str, boxes: Sequence[Box], size_wh: tuple[int, int] | None = None) -> LocatedText:
    """Return a text in which each "*" becomes a location token that means the next box."""
    parts, locations, written = text.split("*"), [], ""
    for part, box in zip(parts, boxes, strict=False):
        written += part
        locations.append(location(box, len(written), size_wh))
        written += LOCATION_TOKEN
    return LocatedText(written + parts[-1], tuple(locations))


def located_conversations(count: int = 6, *, isolated: bool = True, seed: int = 5) -> list[Conversation]:
    """Images of random pixels, each with one to three phrases of one or two objects, and a region in the question."""
    rng = np.random.default_rng(seed)
    conversations = []
    for index in range(count):
        width, height = ((64, 64), (64, 48))[index % 2]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        exchanges: list[Any] = []
        for phrase in range(index % 3 + 1):
            low = rng.uniform(0.05, 0.4, (3, 2))
            boxes = [Box(*pair, *(pair + size)) for pair, size in zip(low, rng.uniform(0.2, 0.5, (3, 2)), strict=True)]
            if phrase == 2:
                exchanges.append((marked("What is at *?", boxes), f"thing {index}"))
            else:
                objects = phrase + 1
                exchanges.append((f"Where is {index}?", marked("*" * objects, boxes[:objects], (width, height))))
        pack = isolated_conversation if isolated else None
        conversations.append(
            pack(image, [[each] for each in exchanges]) if pack else training_conversation(image, exchanges)
        )
    return conversations


def boxes_in_text() -> list[Conversation]:
    """Images of random pixels with a box in text, which is a location as well."""
    rng = np.random.default_rng(3)
    conversations = []
    for index in range(4):
        box = Box(0.1 * index, 0.2, 0.1 * index + 0.4, 0.7)
        answer = Turn("assistant", f"[{index},2,{index + 4},7]", True, (Location(box, 0),))
        image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        conversations.append(Conversation(image, (Turn("user", f"Where is {index}?"), answer)))
    return conversations


def located_mllm(base: str, recipe: Recipe, segmenter: SegmentAnything) -> Mllm:
    """Return the base with a new adapter and location heads."""
    settings = LocationSettings(recipe.method.sam_tokens, len(segmenter.not_a_point), segmenter.not_a_point)
    return attach_lora(load_mllm(base), recipe.lora, recipe.seed, locations=settings)


def fit_located(
    folder: Path,
    base: str,
    *overrides: str,
    conversations: Sequence[Conversation] | None = None,
    stop: TrainerCallback | None = None,
    heads: bool = True,
    **options: Any,
) -> RunFolder:
    """Train `located_conversations()` by the method pix2emb into folder/run, or resume the run.

    Without `heads` the model has no location heads. `options` are those of `fit`.
    """
    folder.mkdir(exist_ok=True)
    recipe = make_recipe(folder, base, PIX2EMB, *overrides)
    sam = SegmentAnything(tiny_sam())
    processes = options.get("processes", SINGLE_PROCESS)
    processes.broadcast_result(lambda: str(RunFolder.create(recipe).path))
    run = RunFolder(recipe.output)
    fit(
        located_mllm(base, recipe, sam) if heads else attach_lora(load_mllm(base), recipe.lora, recipe.seed),
        located_conversations() if conversations is None else conversations,
        recipe,
        run,
        callbacks=[stop] if stop else [],
        segmenter=sam,
        **options,
    )
    return run


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of all trained weights."""
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
