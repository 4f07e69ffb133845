"""The mixture: what a recipe learns from in one epoch, read, cleared of held-out images and drawn by weight or count.

What is drawn depends on the recipe's seed and the files alone. An epoch's order is the trainer's, by the same seed.
This module knows no targets and no text of questions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sam4mllm.data.entry import CHAT_SETS, DataEntry, DataSection
from sam4mllm.data.leakage import LeakageRemoval, leakage_filter_for
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.registry import KnownImages, read_dialogues, read_samples
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError

Item = TypeVar("Item", Sample, Dialogue)


@dataclass(frozen=True, slots=True)
class SampledDataset:
    """What is drawn of one set for an epoch: so many phrases or chats, and their images, each once, in its order."""

    name: str
    count: int
    images: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """What is learned from in one epoch.

    passes: the phrases, pass by pass. The first holds everything that is drawn at all, once; those after it what a
        weight above 1, or a count beyond the set's size, has once more.
    dialogues: the chat, with its repetitions.
    doubled: phrases left out because the same one for the same objects of the same image came before.
    left_out: what the guard took out, a record for each set.
    guarded: the number of images of each guarded split.
    sets: what is drawn of each set, in the recipe's order.
    """

    passes: tuple[tuple[Sample, ...], ...]
    dialogues: tuple[Dialogue, ...]
    doubled: int
    left_out: tuple[LeakageRemoval, ...]
    guarded: dict[str, int]
    sets: tuple[SampledDataset, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every phrase that is drawn, once: what targets are prepared for."""
        return self.passes[0] if self.passes else ()

    def digest(self) -> str:
        """sha256 of what is drawn: each phrase with its image's name and its objects, each chat, in their order."""
        found = hashlib.sha256()
        for sample in (sample for drawn in self.passes for sample in drawn):
            objects = [(item.box, None if item.rle is None else item.rle["counts"]) for item in sample.objects]
            found.update(repr((sample.image.name, sample.phrase, objects)).encode())
        for chat in self.dialogues:
            found.update(repr((Path(chat.image).name, chat.exchanges)).encode())
        return found.hexdigest()

    def leakage(self) -> dict[str, Any]:
        """What leakage.json holds: the guarded splits with their images, and what each set lost to them."""
        return {"guarded": self.guarded, "sets": [each.to_json() for each in self.left_out]}

    def leakage_lines(self) -> list[str]:
        """The same to be read: a line for each set."""
        if not self.guarded:
            return ["leakage guard: nothing is guarded"]
        splits = ", ".join(f"{name} ({count})" for name, count in self.guarded.items())
        return [f"leakage guard: images of {splits}", *(f"leakage guard: {each}" for each in self.left_out)]


def read_mixture(data: DataSection, seed: int) -> Mixture:
    """The mixture of a recipe's `data`.

    Raises:
        DataError: a set that cannot be read, or of which nothing is left to learn from, by its name.
    """
    known: KnownImages = {}
    # Before the guard: a set that is read tells the images of its other splits, and is not parsed again for them.
    read = {
        index: read_samples(entry, known) for index, entry in enumerate(data.train) if entry.dataset not in CHAT_SETS
    }
    guard = leakage_filter_for(data, known)
    left_out: list[LeakageRemoval] = []
    passes: list[list[Sample]] = []
    dialogues: list[Dialogue] = []
    sets: list[SampledDataset] = []
    seen: set[tuple[Path, str, frozenset[str]]] = set()
    doubled = 0

    def held_in(items: Sequence[Item], entry: DataEntry) -> list[Item]:
        """The items whose images are not guarded."""
        lost = LeakageRemoval(entry.name)
        left_out.append(lost)
        kept = []
        for item in items:
            reason = guard.reason(item.image)
            if reason is None:
                kept.append(item)
            else:
                lost.phrases += 1
                lost.images[item.image] = reason
        return kept

    for index, entry in enumerate(data.train):
        if entry.dataset in CHAT_SETS:
            chats = _draw(held_in(read_dialogues(entry), entry), entry, index, seed, left_out[-1])
            dialogues += [chat for drawn in chats for chat in drawn]
            sets.append(_drawn(entry, chats))
            continue
        fresh = []
        for sample in held_in(read.pop(index), entry):
            meaning = (sample.image, sample.phrase, frozenset(item.id for item in sample.objects))
            doubled += meaning in seen
            if meaning not in seen:
                fresh.append(sample)
            seen.add(meaning)
        phrases = _draw(fresh, entry, index, seed, left_out[-1])
        sets.append(_drawn(entry, phrases))
        for number, samples in enumerate(phrases):
            if number == len(passes):
                passes.append([])
            passes[number] += samples
    return Mixture(tuple(map(tuple, passes)), tuple(dialogues), doubled, tuple(left_out), guard.images, tuple(sets))


def _drawn(entry: DataEntry, passes: Sequence[Sequence[Item]]) -> SampledDataset:
    images = dict.fromkeys(item.image for items in passes for item in items)
    return SampledDataset(entry.name, sum(map(len, passes)), tuple(images))


def _draw(items: Sequence[Item], entry: DataEntry, index: int, seed: int, lost: LeakageRemoval) -> list[list[Item]]:
    """The items of one epoch in whole passes and a last one of a part, evenly at random and in the items' order.

    Raises:
        DataError: there is no item, or the weight is too small for one.
    """
    where = f"data.train.{index} ({entry.name})"
    if not items:
        because = f"the leakage guard left out all {lost.phrases} phrases" if lost.phrases else "it is empty"
        raise DataError(
            f"{where}: nothing of this set is left to learn from: {because}, or earlier sets hold the same; "
            "choose another split, or take it out of the mixture"
        )
    count = len(items) if entry.weight is None else round(entry.weight * len(items))
    count = count if entry.count is None else entry.count
    if count < 1:
        raise DataError(f"{where}: weight {entry.weight:g} of {len(items)} phrases is less than one; raise it")
    whole, part = divmod(count, len(items))
    chosen = random.Random(f"{seed} {index} {entry.dataset}").sample(range(len(items)), part)
    return [list(items)] * whole + ([[items[place] for place in sorted(chosen)]] if part else [])
