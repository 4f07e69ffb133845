"""Previews of training conversations: their text and tokens, counted by the collator or estimated from characters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from sam4mllm.data.images import as_rgb, size_wh_of
from sam4mllm.data.mixture import Mixture
from sam4mllm.data.registry import Task
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Recipe
from sam4mllm.training.dataset import TrainingSet, spread
from sam4mllm.training.estimate import vision_tower_size

IMAGES_PER_SET = 4
"""Images of each data set whose conversations are previewed."""
FURTHER_CONVERSATIONS = 48
"""Further conversations that are previewed, spread evenly over the epoch."""
SHOWN_PER_SET = 1
"""Conversations of each data set whose text is shown."""

# Estimates where there is no processor: characters per token of a question and of an answer (mostly digits), tokens of
# the template around a turn, and pixels per token of an image (Qwen2.5-VL's).
_QUESTION, _ANSWER, _TURN = 4.0, 1.5, 5
PIXELS_A_TOKEN = 28 * 28


@dataclass(frozen=True, slots=True)
class ConversationPreview:
    """One training conversation: its image, the rendered text, all its tokens and those that carry loss.

    `supervised` is None where tokens are estimated, `patches` where the number of image patches is not known.
    """

    image: str
    text: str
    tokens: int
    supervised: int | None
    patches: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingSetPreview:
    """Previews of a part of a training set: of each data set, of the whole epoch, and of the longest conversation.

    `shown` are those whose text is shown, at most `SHOWN_PER_SET` of each data set.
    """

    previews: list[ConversationPreview]
    shown: list[ConversationPreview]

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a conversation."""
        return fmean(preview.tokens for preview in self.previews)

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return max(preview.tokens for preview in self.previews)

    @property
    def mean_supervised(self) -> float | None:
        """Mean tokens that carry loss; None where tokens are estimated."""
        counts = [preview.supervised for preview in self.previews if preview.supervised is not None]
        return fmean(counts) if counts else None

    @property
    def mean_patches(self) -> float:
        """Mean image patches of a conversation; 0 where they are not known."""
        counts = [preview.patches for preview in self.previews if preview.patches is not None]
        return fmean(counts) if counts else 0.0


def preview_training_set(
    training_set: TrainingSet, mixture: Mixture, mllm: Mllm | None, recipe: Recipe
) -> TrainingSetPreview:
    """Preview conversations of each data set, further ones spread over the epoch, and the one with the longest text.

    Raises:
        DataError, ModelError: As the collator.
    """
    first = _first_conversations(mixture, training_set, recipe)
    further = spread(training_set.conversations, FURTHER_CONVERSATIONS)
    longest = max(training_set.conversations, key=_characters)
    chosen = {id(each): each for each in [*chain.from_iterable(first), *further, longest]}
    previews = {key: preview_conversation(each, mllm, recipe) for key, each in chosen.items()}
    shown = [previews[id(each)] for of_set in first for each in of_set[:SHOWN_PER_SET]]
    return TrainingSetPreview(list(previews.values()), shown)


def preview_conversation(conversation: Conversation, mllm: Mllm | None, recipe: Recipe) -> ConversationPreview:
    """Tokenize a conversation with the collator that training uses; without a model, estimate its tokens from its text.

    Raises:
        DataError, ModelError: As the collator.
    """
    from sam4mllm.training.collator import IGNORED, Collator

    image = "no image" if conversation.image is None else str(conversation.image)
    if mllm is None:
        area = _area(conversation, recipe)
        text = "\n".join(f"{turn.role}: {turn.text}" for turn in conversation.turns)
        return ConversationPreview(image, text, round(text_tokens(conversation) + area / PIXELS_A_TOKEN), None)
    batch = Collator(mllm)([conversation])
    text = rendered_text(mllm.processor, conversation)
    _, patch = vision_tower_size(mllm.model.get_base_model())
    pixels = batch.get("pixel_values")
    return ConversationPreview(
        image,
        text,
        tokens=int(batch["attention_mask"].sum()),
        supervised=int((batch["labels"] != IGNORED).sum()),
        patches=None if patch is None or pixels is None else pixels.numel() / patch,
    )


def rendered_text(processor: Any, conversation: Conversation) -> str:
    """Return the text of a conversation; of further branches, the part behind what all have in common."""
    from sam4mllm.mllm.shared_prefix import common_length

    texts = [processor.apply_chat_template(each.messages(), tokenize=False) for each in conversation.branches]
    if len(texts) == 1:
        return str(texts[0])
    shared = min(common_length(texts[0], text) for text in texts)
    branches = [f"\n[isolated phrase {number}] {text[shared:]}" for number, text in enumerate(texts, start=1)]
    return texts[0][:shared] + "".join(branches)


def _first_conversations(mixture: Mixture, training_set: TrainingSet, recipe: Recipe) -> list[list[Conversation]]:
    """Return for each data set the conversations about its first images, and the first ones without an image.

    The first of them is shown.

    If several sets have an image, each set shows another conversation about it, as far as there are several.
    """
    next_chat = len(training_set.conversations) - training_set.chats
    by_image: dict[tuple[Task, Path], list[Conversation]] = {}
    for task, conversation in zip(training_set.tasks, training_set.conversations, strict=True):
        if conversation.image is not None:
            assert isinstance(conversation.image, Path), "conversations of a mixture are about files"
            by_image.setdefault((task, conversation.image), []).append(conversation)
    already_shown: set[int] = set()
    first = []
    for entry, sampled in zip(recipe.data.train, mixture.sets, strict=True):
        conversations: list[Conversation] = [
            each for image in sampled.images[:IMAGES_PER_SET] for each in by_image.get((entry.used_task, image), [])
        ]
        if entry.is_chat:
            chats = training_set.conversations[next_chat : next_chat + sampled.count]
            next_chat += sampled.count
            conversations += [each for each in chats if each.image is None][:IMAGES_PER_SET]
        first.append(sorted(conversations, key=lambda each: id(each) in already_shown))
        already_shown.update(id(each) for each in first[-1][:SHOWN_PER_SET])
    return first


def _area(conversation: Conversation, recipe: Recipe) -> float:
    """Return the pixels of the image within the recipe's limits; 0 if there is no image."""
    if conversation.image is None:
        return 0.0
    # Of an image whose size is not found, the error of decoding it names the problem.
    size_wh = size_wh_of(conversation.image) or as_rgb(conversation.image).shape[:2]
    area = float(math.prod(size_wh))
    return min(max(area, recipe.model.min_pixels or 0.0), recipe.model.max_pixels or area)


def _characters(conversation: Conversation) -> int:
    """Return the length of the text of all turns."""
    return sum(len(turn.text) for turn in conversation.turns)


def text_tokens(conversation: Conversation) -> float:
    """Estimate the tokens of the text from its characters."""
    return sum(_TURN + len(turn.text) / (_QUESTION if turn.role == "user" else _ANSWER) for turn in conversation.turns)
