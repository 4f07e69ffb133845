"""Set up transformers' Trainer: our trainers, collator and callbacks, and the losses of a method's locations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PrinterCallback

from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.training.callbacks import DisableVisionInputGrads, EpochOrder, LogCallback, ResumedLearningRate
from sam4mllm.training.checked_trainer import CheckedTrainer
from sam4mllm.training.collator import Collator
from sam4mllm.training.estimate import conversations_per_step, optimizer_steps
from sam4mllm.training.isolation import isolate_branches
from sam4mllm.training.lengths import order_of_conversations
from sam4mllm.training.located_trainer import LocatedTrainer
from sam4mllm.training.location_losses import LocationLosses, LocationWeights

logger = logging.getLogger(__name__)


def make_trainer(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    recipe: Recipe,
    run: RunFolder,
    arguments: Any,
    callbacks: Sequence[Any],
    segmenter: Segmenter | None = None,
) -> Any:
    """Make a trainer with our collator and callbacks, and log the number of steps.

    If the recipe's method has losses of locations, they are attached to the model; that of masks uses `segmenter`.

    Raises:
        ModelError: As `isolate_branches` and `LocationLosses`.
    """
    if any(len(conversation.branch_starts) > 1 for conversation in conversations):
        isolate_branches(mllm.model)
    order = order_of_conversations(conversations, mllm.processor, arguments)
    make: Callable[..., Any] = CheckedTrainer
    if (weights := LocationWeights.of(recipe.method)) is not None:
        make = partial(LocatedTrainer, locations=LocationLosses(mllm, weights, segmenter, recipe.seed))
    trainer = make(
        order=order,
        model=mllm.model,
        args=arguments,
        train_dataset=list(conversations),
        collator=Collator(mllm),
        callbacks=[
            *([EpochOrder(order)] if order else []),
            DisableVisionInputGrads(),
            ResumedLearningRate(),
            LogCallback(run),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    epoch, total = optimizer_steps(len(conversations), arguments)
    per_step = conversations_per_step(arguments)
    logger.info("%d conversations per step, %d steps per epoch, %d steps in total", per_step, epoch, total)
    return trainer
