"""What is learned: a mixture and its targets become conversations, one picture at a time, in the order of the samples.

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

from sam4mllm.chat.conversation import Conversation, teaching
from sam4mllm.data.mixture import Mixture
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.methods import Method
from sam4mllm.methods.base import Taught, teachable

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Lessons:
    """The conversations to learn in one epoch, and how many phrases are in them, as often as they come.

    `chats` counts the conversations of chat among them; `untaught` the phrases left out because an object of theirs has
    no target.
    """

    conversations: list[Conversation]
    phrases: int
    chats: int
    untaught: int


def make_lessons(mixture: Mixture, targets: Mapping[str, Taught], method: Method) -> Lessons:
    """The conversations of a mixture: the phrases of each pass, pictures in the order of their first sample; then chat.

    Raises:
        DataError: nothing is left to learn.
    """
    conversations: list[Conversation] = []
    phrases = untaught = 0
    for samples in mixture.passes:
        by_picture: dict[Path, list[Sample]] = {}
        for sample in samples:
            if not method.needs_targets or teachable(sample, targets):
                phrases += 1
                by_picture.setdefault(sample.image, []).append(sample)
            else:
                untaught += 1
        conversations += [talk for group in by_picture.values() for talk in method.teach(group, targets)]
    conversations += [teaching(chat.image, list(chat.exchanges)) for chat in mixture.dialogues]
    if not conversations:
        raise DataError(
            f"nothing to learn: {untaught} phrases have no target and no other is left; check data.train and "
            "targets.min_iou"
        )
    return Lessons(conversations, phrases, len(mixture.dialogues), untaught)


def spread(samples: Sequence[Item], count: int) -> list[Item]:
    """At most `count` samples or conversations, evenly spread over the list, in its order."""
    if count >= len(samples):
        return list(samples)
    return [samples[place * len(samples) // count] for place in range(count)]


def digest(conversations: Sequence[Conversation]) -> str:
    """sha256 of the pictures' names, or pixels where they have none, and of all that is said, in its order."""
    found = hashlib.sha256()
    for conversation in conversations:
        picture = conversation.image
        name = str(picture).encode() if isinstance(picture, str | Path) else np.asarray(picture).tobytes()
        said = [(turn.role, turn.text, turn.supervised) for turn in conversation.turns]
        found.update(hashlib.sha256(name).digest() + json.dumps(said).encode())
    return found.hexdigest()
