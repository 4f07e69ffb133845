"""The mixture: the training samples and dialogues of one epoch, without held-out images, sampled by weight or count.

The sampling depends on the recipe's seed and the files alone. The trainer shuffles each epoch with the same seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sam4mllm.data.contradictions import contradiction_note, contradictions
from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.leakage import LeakageFilter, LeakageRemoval, leakage_filter_for
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import read_dialogues, read_samples
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError

Item = TypeVar("Item", Sample, Dialogue)


@dataclass(frozen=True, slots=True)
class SampledDataset:
    """What one epoch uses of one data set: the number of phrases or dialogues with repetitions, and their images.

    `without_image` is the number of those dialogues that have no image.
    """

    name: str
    count: int
    images: tuple[Path, ...]
    without_image: int = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """The training data of one epoch.

    epochs: the phrases by how often they are used. `epochs[0]` holds every phrase that is used at all, once;
        `epochs[n]` those that a weight above 1, or a count above the data set's size, repeats an n-th time.
    dialogues: the chat, with its repetitions.
    duplicates: the number of phrases removed because an earlier one has the same text, image and objects.
    removals: what the leakage filter removed, one record for each data set.
    guarded: the number of images of each held-out split.
    sets: what is used of each data set, in the recipe's order.
    contradictory: the samples of one data set that have equal images and phrases and different objects.
    """

    epochs: tuple[tuple[Sample, ...], ...]
    dialogues: tuple[Dialogue, ...]
    duplicates: int
    removals: tuple[LeakageRemoval, ...]
    guarded: dict[str, int]
    sets: tuple[SampledDataset, ...] = ()
    contradictory: tuple[tuple[Sample, ...], ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every phrase that is used, once: the samples that targets are computed for."""
        return self.epochs[0] if self.epochs else ()

    def digest(self) -> str:
        """Return a SHA-256 over the phrases with their images' names and objects, and the dialogues, in order."""
        digest = hashlib.sha256()
        for sample in (sample for samples in self.epochs for sample in samples):
            objects = [(item.box, None if item.rle is None else item.rle["counts"]) for item in sample.objects]
            digest.update(repr((sample.image.name, sample.phrase, objects)).encode())
        for dialogue in self.dialogues:
            name = None if dialogue.image is None else dialogue.image.name
            digest.update(repr((name, dialogue.exchanges)).encode())
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """Return what may be wrong with the data, as sentences for the log."""
        notes = [contradiction_note(self.contradictory)] if self.contradictory else []
        notes += [
            f"{each.name}: {each.without_image:,} of {each.count:,} chats have no image and are trained on as text"
            for each in self.sets
            if each.without_image
        ]
        return notes

    def leakage(self) -> dict[str, Any]:
        """Return the content of leakage.json: the held-out splits with their images, and the removals."""
        return {"guarded": self.guarded, "sets": [each.to_json() for each in self.removals]}

    def leakage_lines(self) -> list[str]:
        """Return the held-out splits and the removals as lines for the log, one for each data set."""
        if not self.guarded:
            return ["leakage filter: off, no split is held out"]
        splits = ", ".join(f"{name} ({count})" for name, count in self.guarded.items())
        return [
            f"leakage filter: held-out splits (images): {splits}",
            *(f"leakage filter: {each}" for each in self.removals),
        ]


def read_mixture(data: DataSection, seed: int) -> Mixture:
    """Read the mixture of a recipe's `data`.

    Raises:
        DataError: A data set cannot be read, or nothing of it is left to train on; the message names the entry.
    """
    # 1. Read the samples. This comes before the filter, so that files of refs, which list the images of all splits,
    # are parsed once.
    samples_of = {index: read_samples(entry) for index, entry in enumerate(data.train) if not entry.is_chat}
    leakage_filter = leakage_filter_for(data)
    removals: list[LeakageRemoval] = []
    epochs: list[list[Sample]] = []
    dialogues: list[Dialogue] = []
    sets: list[SampledDataset] = []
    seen: set[tuple[Path, str, frozenset[str]]] = set()
    contradictory: list[tuple[Sample, ...]] = []
    duplicates = 0
    for index, entry in enumerate(data.train):
        removal = LeakageRemoval(entry.name)
        removals.append(removal)
        # 2. Chat: remove held-out images, then sample by weight or count.
        if entry.is_chat:
            kept = _without_held_out(read_dialogues(entry), leakage_filter, removal)
            chat_epochs = _sample_epochs(kept, entry, index, seed, removal)
            dialogues += [dialogue for part in chat_epochs for dialogue in part]
            sets.append(_sampled(entry, chat_epochs))
            continue
        # 3. Phrases: the same, after removing those that an earlier data set has.
        unique = []
        for sample in _without_held_out(samples_of.pop(index), leakage_filter, removal):
            key = (sample.image, sample.phrase, frozenset(item.id for item in sample.objects))
            duplicates += key in seen
            if key not in seen:
                unique.append(sample)
            seen.add(key)
        contradictory += contradictions(unique)
        phrase_epochs = _sample_epochs(unique, entry, index, seed, removal)
        sets.append(_sampled(entry, phrase_epochs))
        for number, samples in enumerate(phrase_epochs):
            if number == len(epochs):
                epochs.append([])
            epochs[number] += samples
    return Mixture(
        tuple(map(tuple, epochs)),
        tuple(dialogues),
        duplicates,
        tuple(removals),
        leakage_filter.images,
        tuple(sets),
        tuple(contradictory),
    )


def _without_held_out(items: Sequence[Item], leakage_filter: LeakageFilter, removal: LeakageRemoval) -> list[Item]:
    """Return the items whose images are not held out, and count the others in `removal`."""
    kept = []
    for item in items:
        reason = None if item.image is None else leakage_filter.reason(item.image)
        if item.image is None or reason is None:
            kept.append(item)
        else:
            removal.phrases += 1
            removal.images[item.image] = reason
    return kept


def _sampled(entry: DataEntry, epochs: Sequence[Sequence[Item]]) -> SampledDataset:
    images: list[Path | None] = [item.image for items in epochs for item in items]
    found = dict.fromkeys(image for image in images if image is not None)
    return SampledDataset(entry.name, len(images), tuple(found), images.count(None))


def _sample_epochs(
    items: Sequence[Item], entry: DataEntry, index: int, seed: int, removal: LeakageRemoval
) -> list[list[Item]]:
    """Return all items as often as weight or count ask for, then a random part of them, in the items' order.

    Raises:
        DataError: There is no item, or the weight is too small for one.
    """
    where = f"data.train.{index} ({entry.name})"
    if not items:
        raise DataError(
            f"{where}: nothing of this data set is left to train on: the leakage filter removed {removal.phrases} "
            "phrases, and those that earlier data sets contain are removed as duplicates; choose another split, or "
            "remove it from the mixture"
        )
    count = len(items) if entry.weight is None else round(entry.weight * len(items))
    count = count if entry.count is None else entry.count
    if count < 1:
        raise DataError(f"{where}: weight {entry.weight:g} of {len(items)} phrases is less than one; raise it")
    full, rest = divmod(count, len(items))
    chosen = random.Random(f"{seed} {index} {entry.dataset}").sample(range(len(items)), rest)
    return [list(items)] * full + ([[items[position] for position in sorted(chosen)]] if rest else [])
