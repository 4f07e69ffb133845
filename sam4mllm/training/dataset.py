"""TrainingSet: the conversations of one epoch, made from a mixture of data sets and the targets of its objects.

The method makes the conversations about phrases, one image at a time in the order of the samples, and those about
regions and grounded captions are written in its form of boxes; chat is used unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sam4mllm.data.mixture import Mixture
from sam4mllm.data.registry import Task
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.methods.base import Method, PromptTarget, has_targets
from sam4mllm.methods.text_training import caption_conversations, region_conversations
from sam4mllm.prompts.conversation import Conversation, Turn, training_conversation

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The conversations of one epoch.

    Attributes:
        conversations: Those about phrases, about regions, grounded captions, and those of chat, in this order.
        tasks: The task of each conversation.
        phrases: Phrases in the conversations, repetitions included.
        chats: Conversations of chat.
        without_target: Phrases left out because an object that they refer to has no target.
        regions: Regions in the conversations, repetitions included.
        captions: Grounded captions.
    """

    conversations: list[Conversation]
    tasks: list[Task]
    phrases: int
    chats: int
    without_target: int
    regions: int = 0
    captions: int = 0


def make_training_set(mixture: Mixture, targets: Mapping[str, PromptTarget], method: Method) -> TrainingSet:
    """Make the conversations of a mixture: those about phrases, epoch by epoch, then of regions, captions and chat.

    Within an epoch, images come in the order of their first sample.

    Raises:
        DataError: No conversation can be made from the mixture.
    """
    by_task: dict[Task, list[Conversation]] = {"segment": [], "region-caption": []}
    phrases = without_target = 0
    for samples in mixture.epochs:
        usable = [sample for sample in samples if not method.needs_targets or has_targets(sample, targets)]
        phrases += len(usable)
        without_target += len(samples) - len(usable)
        for group in _by_image(usable):
            by_task["segment"] += method.training_conversations(group, targets)
    for samples in mixture.regions:
        for group in _by_image(samples):
            by_task["region-caption"] += region_conversations(method, group)
    by_task["grounded-caption"] = caption_conversations(method, mixture.captions)
    by_task["chat"] = [training_conversation(chat.image, list(chat.exchanges)) for chat in mixture.dialogues]
    conversations = [conversation for of_task in by_task.values() for conversation in of_task]
    if not conversations:
        raise DataError(
            f"the training set is empty: {without_target} phrases have no target, and there are no other ones; check "
            "data.train and targets.min_iou"
        )
    return TrainingSet(
        conversations,
        [task for task, of_task in by_task.items() for _ in of_task],
        phrases,
        len(mixture.dialogues),
        without_target,
        regions=sum(map(len, mixture.regions)),
        captions=len(mixture.captions),
    )


def count_text(phrases: int, regions: int, captions: int, chats: int) -> str:
    """Return the numbers of what conversations are about; regions and captions only if there are any."""
    located = [f"{regions:,} regions"] if regions else []
    located += [f"{captions:,} grounded captions"] if captions else []
    return ", ".join([f"{phrases:,} phrases", *located]) + f" and {chats:,} chats"


def _by_image(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return the samples of each image, in the order of their first ones."""
    groups: dict[Path, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image, []).append(sample)
    return list(groups.values())


def spread(samples: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` samples or conversations, evenly spread over the list, in its order."""
    if count >= len(samples):
        return list(samples)
    return [samples[index * len(samples) // count] for index in range(count)]


def digest(conversations: Sequence[Conversation]) -> str:
    """Return the SHA-256 of the images' paths, or of the pixels of images without one, and of all turns."""
    sha256 = hashlib.sha256()
    for conversation in conversations:
        turns = [(turn.role, turn.text, turn.supervised, *_locations(turn)) for turn in conversation.turns]
        # With a single branch it is the digest that earlier versions recorded.
        text = json.dumps([turns, conversation.branch_starts] if len(conversation.branch_starts) > 1 else turns)
        sha256.update(_image_digest(conversation) + text.encode())
    return sha256.hexdigest()


def answer_digests(conversations: Sequence[Conversation]) -> set[str]:
    """Return a digest of each answer with its question and image, wherever in the conversations it is."""
    digests = set()
    for conversation in conversations:
        image = _image_digest(conversation)
        for question, answer in zip(conversation.turns[::2], conversation.turns[1::2], strict=True):
            located = (*_locations(question), *_locations(answer))
            text = json.dumps([question.text, answer.text, answer.supervised, *located])
            digests.add(hashlib.sha256(image + text.encode()).hexdigest()[:16])
    return digests


def _locations(turn: Turn) -> list[str]:
    """Return the locations of a turn as one text; none for a turn without, as earlier versions recorded it."""
    return [repr(turn.locations)] if turn.locations else []


def _image_digest(conversation: Conversation) -> bytes:
    image = conversation.image
    if image is None:
        return b""
    name = str(image).encode() if isinstance(image, str | Path) else np.asarray(image).tobytes()
    return hashlib.sha256(name).digest()
