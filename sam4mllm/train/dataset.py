"""What is learned: a mixture and its targets become conversations, one image at a time, in the order of the samples.

This module knows no tokens and no model; how a phrase is taught is the method's, and chat is taught as it stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sam4mllm.data.mixture import Mixture
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.methods.base import PromptTarget, has_targets
from sam4mllm.methods.registry import Method
from sam4mllm.prompts.conversation import Conversation, teaching

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The conversations to learn in one epoch, and how many phrases are in them, as often as they come.

    `chats` counts the conversations of chat among them; `untaught` the phrases left out because an object of theirs has
    no target.
    """

    conversations: list[Conversation]
    phrases: int
    chats: int
    without_target: int


def make_training_set(mixture: Mixture, targets: Mapping[str, PromptTarget], method: Method) -> TrainingSet:
    """The conversations of a mixture: the phrases of each pass, images in the order of their first sample; then chat.

    Raises:
        DataError: nothing is left to learn.
    """
    conversations: list[Conversation] = []
    phrases = without_target = 0
    for samples in mixture.passes:
        by_image: dict[Path, list[Sample]] = {}
        for sample in samples:
            if not method.needs_targets or has_targets(sample, targets):
                phrases += 1
                by_image.setdefault(sample.image, []).append(sample)
            else:
                without_target += 1
        conversations += [talk for group in by_image.values() for talk in method.training_conversations(group, targets)]
    conversations += [teaching(chat.image, list(chat.exchanges)) for chat in mixture.dialogues]
    if not conversations:
        raise DataError(
            f"nothing to learn: {without_target} phrases have no target and no other is left; check data.train and "
            "targets.min_iou"
        )
    return TrainingSet(conversations, phrases, len(mixture.dialogues), without_target)


def spread(samples: Sequence[Item], count: int) -> list[Item]:
    """At most `count` samples or conversations, evenly spread over the list, in its order."""
    if count >= len(samples):
        return list(samples)
    return [samples[place * len(samples) // count] for place in range(count)]


def digest(conversations: Sequence[Conversation]) -> str:
    """sha256 of the images' names, or pixels where they have none, and of all that is said, in its order."""
    found = hashlib.sha256()
    for conversation in conversations:
        image = conversation.image
        name = str(image).encode() if isinstance(image, str | Path) else np.asarray(image).tobytes()
        said = [(turn.role, turn.text, turn.supervised) for turn in conversation.turns]
        found.update(hashlib.sha256(name).digest() + json.dumps(said).encode())
    return found.hexdigest()
