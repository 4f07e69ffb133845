"""Check a base model's chat template against the training conversations of a recipe, before any work is done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from sam4mllm.data.mixture import Mixture
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.mllm.chat_template import renders_several_answers
from sam4mllm.mllm.families import Family
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import is_hub_id, load_config, load_processor, longest_input
from sam4mllm.prompts.conversation import training_conversation
from sam4mllm.recipe.schema import Recipe
from sam4mllm.training.arguments import added_tokens
from sam4mllm.training.data_check import check_texts, long_chat_notes
from sam4mllm.training.dataset import make_training_set

logger = logging.getLogger(__name__)


def check_template(recipe: Recipe, mixture: Mixture, held_out: Sequence[Sample] = ()) -> tuple[Any, Family]:
    """Check that the answers of the recipe's training conversations can be trained on with the base's chat template.

    It returns what `load_processor` returned, for the training; only config and processor of the base are loaded.
    `held_out` are the samples for validation.

    Raises:
        RecipeError: A conversation has several answers, which the template cannot render.
        DataError: Phrases or chats hold control tokens of the template.
        ModelError: The base has no usable processor or chat template, or it cannot isolate phrases and the recipe asks
            for it.
    """
    from sam4mllm.training.collator import answer_spans, branch_ids
    from sam4mllm.training.isolation import check_isolation

    # 1. One answer: the processor's tokens are those of the rendered text.
    config = load_config(recipe.model.base)
    processor, family = load_processor(recipe.model.base, recipe.model.image_size)
    conversation = training_conversation(np.zeros((224, 224, 3), dtype=np.uint8), [("?", "[1,2]")])
    inputs = model_inputs(processor, [messages_with_image(conversation)], padding_side="right")
    ids = inputs["input_ids"][0].tolist()
    answer_spans(conversation, ids, processor)
    if recipe.method.packing == "isolated" and recipe.method.phrases > 1:
        check_isolation(config, recipe.model.attn_implementation)
        branch_ids([conversation, training_conversation(conversation.image, [("!", "[3]")])], ids, processor)
    # 2. The texts of all records.
    check_texts(processor, [*mixture.annotated, *held_out], mixture.dialogues, added=added_tokens(recipe))
    for note in long_chat_notes(processor, longest_input(config), mixture.dialogues):
        logger.warning("%s", note)
    # 3. Several answers. Their number does not depend on the targets, so boxes replace these.
    if renders_several_answers(processor):
        return processor, family
    targets = {
        item.id: SimpleNamespace(prompts=[SamPrompt(item.box)]) for sample in mixture.samples for item in sample.objects
    }
    conversations = make_training_set(mixture, targets, method_of_recipe(recipe, (processor, family))).conversations
    several = [each for each in conversations if any(len(branch.turns) > 2 for branch in each.branches)]
    if several:
        raise RecipeError(
            f"model.base {recipe.model.base!r}: its chat template renders earlier answers differently once later turns "
            f"follow, so only conversations of one answer can be trained on, but {len(several)} of "
            f"{len(conversations)} have more (the first is about {several[0].image}); {_advice(recipe, mixture)}"
        )
    return processor, family


def check_template_if_available(recipe: Recipe, mixture: Mixture) -> None:
    """Check the template as `check_template`; log a warning where the base is a Hub id that cannot be downloaded here.

    Raises:
        RecipeError, DataError, ModelError: As `check_template`.
    """
    try:
        check_template(recipe, mixture)
    except ModelError as error:
        if not is_hub_id(recipe.model.base) or not isinstance(error.__cause__, OSError):
            raise
        logger.warning("%s; the targets are computed without a check of its chat template", error)


def _advice(recipe: Recipe, mixture: Mixture) -> str:
    """Return the settings with which all conversations have one answer."""
    settings = ["method.name=ppg"] if recipe.method.name != "ppg" else []
    if recipe.method.phrases > 1 and recipe.method.packing == "turns":
        settings.append("method.packing=isolated (or method.phrases=1)")
    advice = [f"set {' and '.join(settings)}"] if settings else []
    if any(len(dialogue.exchanges) > 1 for dialogue in mixture.dialogues):
        advice.append("leave chat of several exchanges out of data.train")
    return ", ".join([*advice, "or use another base"])
