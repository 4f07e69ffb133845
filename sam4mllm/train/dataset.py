"""What is learned: samples and targets become conversations, one picture at a time, in the order of the samples.

This module knows no tokens and no model; how a phrase is taught is the method's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam4mllm.chat.conversation import Conversation
from sam4mllm.data.readers import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.methods import Method
from sam4mllm.methods.base import Taught, teachable
from sam4mllm.recipe_sections import DataEntry


@dataclass(frozen=True, slots=True)
class Lessons:
    """The conversations to learn, and how many phrases did not come into them and why.

    `doubled`: the same phrase for the same objects of the same picture, again. `untaught`: an object of theirs has no
    target. `held_out`: their picture is one that training is validated on.
    """

    conversations: list[Conversation]
    phrases: int
    doubled: int
    untaught: int
    held_out: int


def read_entries(entries: Sequence[DataEntry]) -> list[Sample]:
    """The samples of a recipe's data entries, one after the other.

    Raises:
        DataError: a data set cannot be read.
    """
    return [
        sample
        for entry in entries
        for sample in read_dataset(
            entry.dataset,
            entry.root,
            entry.split,
            images=entry.images,
            split_by=entry.split_by,
            limit=entry.limit,
        )
    ]


def make_lessons(
    samples: Sequence[Sample],
    targets: Mapping[str, Taught],
    method: Method,
    held_out: frozenset[Path] = frozenset(),
) -> Lessons:
    """The conversations of all samples, pictures in the order of their first sample.

    Pictures in `held_out` are left out whole: the RefCOCO sets share pictures, one's training split holds another's
    validation pictures.

    Raises:
        DataError: nothing is left to learn.
    """
    by_picture: dict[Path, list[Sample]] = {}
    seen: set[tuple[Path, str, frozenset[str]]] = set()
    counts = {"phrases": 0, "doubled": 0, "untaught": 0, "held_out": 0}
    for sample in samples:
        meaning = (sample.image, sample.phrase, frozenset(item.id for item in sample.objects))
        if sample.image in held_out:
            counts["held_out"] += 1
        elif meaning in seen:
            counts["doubled"] += 1
        elif not teachable(sample, targets):
            counts["untaught"] += 1
        else:
            counts["phrases"] += 1
            seen.add(meaning)
            by_picture.setdefault(sample.image, []).append(sample)
    conversations = [talk for group in by_picture.values() for talk in method.teach(group, targets)]
    if not conversations:
        raise DataError(
            f"nothing to learn: of {len(samples)} phrases {counts['untaught']} have no target and "
            f"{counts['held_out']} are about pictures of data.validation; check data.train and targets.min_iou"
        )
    return Lessons(conversations, **counts)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly spread over the list, in its order."""
    if count >= len(samples):
        return list(samples)
    return [samples[place * len(samples) // count] for place in range(count)]
