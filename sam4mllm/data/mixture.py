"""The mixture: the training data of one epoch by task, without held-out images, sampled by weight or count.

The sampling depends on the recipe's seed and the files alone. The trainer shuffles each epoch with the same seed.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from sam4mllm.data.contradictions import contradiction_note, contradictions
from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.leakage import LeakageFilter, LeakageRemoval, leakage_filter_for
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import AnyItem, read_items
from sam4mllm.data.registry import Task
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

Item = TypeVar("Item", bound=AnyItem)


@dataclass(frozen=True, slots=True)
class SampledDataset:
    """What one epoch uses of one data set: the number of its items with repetitions, and their images.

    `without_image` is the number of those dialogues that have no image. `unusable` is the number of items that have
    nothing of the task: phrases without exactly one object are no region captions, and captions without an object are
    no grounded ones.
    """

    name: str
    count: int
    images: tuple[Path, ...]
    without_image: int = 0
    unusable: int = 0


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
    regions: the samples for region captioning, each with one object, by how often they are used, as in `epochs`.
        They need no targets, and are not among `samples`.
    captions: the grounded captions, with their repetitions.
    """

    epochs: tuple[tuple[Sample, ...], ...]
    dialogues: tuple[Dialogue, ...]
    duplicates: int
    removals: tuple[LeakageRemoval, ...]
    guarded: dict[str, int]
    sets: tuple[SampledDataset, ...] = ()
    contradictory: tuple[tuple[Sample, ...], ...] = ()
    regions: tuple[tuple[Sample, ...], ...] = ()
    captions: tuple[GroundedCaption, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every phrase that is used, once: the samples that targets are computed for."""
        return self.epochs[0] if self.epochs else ()

    @property
    def annotated(self) -> tuple[Sample | GroundedCaption, ...]:
        """Every phrase, region and caption that is used: all items but the dialogues."""
        return (*self.samples, *(self.regions[0] if self.regions else ()), *self.captions)

    @property
    def items(self) -> tuple[AnyItem, ...]:
        """Every phrase, region, caption and dialogue that is used."""
        return (*self.annotated, *self.dialogues)

    def digest(self) -> str:
        """Return a SHA-256 over the phrases with their images' names and objects, and the dialogues, in order.

        Regions and captions, where there are any, follow.
        """
        digest = hashlib.sha256()
        for sample in (sample for samples in self.epochs for sample in samples):
            digest.update(repr((sample.image.name, sample.phrase, _contents(sample.objects))).encode())
        for dialogue in self.dialogues:
            name = None if dialogue.image is None else dialogue.image.name
            digest.update(repr((name, dialogue.exchanges)).encode())
        for sample in (sample for samples in self.regions for sample in samples):
            digest.update(repr(("region", sample.image.name, sample.phrase, _contents(sample.objects))).encode())
        for caption in self.captions:
            mentions = [(each.start, each.end, _contents(each.objects)) for each in caption.mentions]
            digest.update(repr(("caption", caption.image.name, caption.text, mentions)).encode())
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """Return what may be wrong with the data, as sentences for the log."""
        notes = [contradiction_note(self.contradictory)] if self.contradictory else []
        notes += [
            f"{each.name}: {each.without_image:,} of {each.count:,} chats have no image and are trained on as text"
            for each in self.sets
            if each.without_image
        ]
        notes += [
            f"{each.name}: {each.unusable:,} items are left out: a region caption needs exactly one object, and a "
            "grounded caption a phrase with an object"
            for each in self.sets
            if each.unusable
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
    items_of = {index: read_items(entry) for index, entry in enumerate(data.train) if not entry.is_chat}
    leakage_filter = leakage_filter_for(data)
    removals: list[LeakageRemoval] = []
    epochs: dict[Task, list[list[Any]]] = {"segment": [], "region-caption": []}
    repeated: dict[Task, list[Any]] = {"grounded-caption": [], "chat": []}
    sets: list[SampledDataset] = []
    seen: set[tuple[Path, str, frozenset[str]]] = set()
    contradictory: list[tuple[Sample, ...]] = []
    duplicates = 0
    for index, entry in enumerate(data.train):
        removal = LeakageRemoval(entry.name)
        removals.append(removal)
        items: Sequence[AnyItem] = items_of.pop(index) if index in items_of else read_items(entry)
        # 2. Remove held-out images, what the task cannot use, and phrases that an earlier data set has.
        usable, unusable = _usable(items, entry, _not_held_out(items, leakage_filter, removal))
        if entry.used_task == "segment":
            samples = cast("Sequence[Sample]", items)
            kept = _unique(samples, usable, seen)
            duplicates += len(usable) - len(kept)
            usable = kept
            contradictory += contradictions(samples[position] for position in usable)
        # 3. Sample by weight or count.
        parts = _sample_epochs(items, usable, entry, index, seed, removal)
        sets.append(_sampled(entry, parts, unusable))
        if entry.used_task in repeated:
            repeated[entry.used_task] += [item for part in parts for item in part]
            continue
        of_task = epochs[entry.used_task]
        for number, part in enumerate(parts):
            if number == len(of_task):
                of_task.append([])
            of_task[number] += part
    return Mixture(
        tuple(map(tuple, epochs["segment"])),
        tuple(repeated["chat"]),
        duplicates,
        tuple(removals),
        leakage_filter.images,
        tuple(sets),
        tuple(contradictory),
        tuple(map(tuple, epochs["region-caption"])),
        tuple(repeated["grounded-caption"]),
    )


# Positions and not items are kept below: the items of a large data set are made when they are asked for.


def _not_held_out(items: Sequence[AnyItem], leakage_filter: LeakageFilter, removal: LeakageRemoval) -> array[int]:
    """Return the positions of the items whose images are not held out, and count the others in `removal`."""
    kept = array("Q")
    for position, item in enumerate(items):
        reason = None if item.image is None else leakage_filter.reason(item.image)
        if item.image is None or reason is None:
            kept.append(position)
        else:
            removal.phrases += 1
            removal.images[item.image] = reason
    return kept


def _usable(items: Sequence[Any], entry: DataEntry, positions: array[int]) -> tuple[array[int], int]:
    """Return the positions of the items that the entry's task can use, and the number of the others."""
    if entry.used_task == "region-caption":
        kept = array("Q", (position for position in positions if len(items[position].objects) == 1))
    elif entry.used_task == "grounded-caption":
        kept = array("Q", (position for position in positions if items[position].mentions))
    else:
        kept = positions
    return kept, len(positions) - len(kept)


def _unique(
    samples: Sequence[Sample], positions: array[int], seen: set[tuple[Path, str, frozenset[str]]]
) -> array[int]:
    """Return the positions of the samples that are not in `seen`, which gets them."""
    kept = array("Q")
    for position in positions:
        sample = samples[position]
        key = (sample.image, sample.phrase, frozenset(item.id for item in sample.objects))
        if key not in seen:
            kept.append(position)
        seen.add(key)
    return kept


def _sampled(entry: DataEntry, epochs: Sequence[Sequence[AnyItem]], unusable: int) -> SampledDataset:
    images: list[Path | None] = [item.image for items in epochs for item in items]
    found = dict.fromkeys(image for image in images if image is not None)
    return SampledDataset(entry.name, len(images), tuple(found), images.count(None), unusable)


def _sample_epochs(
    items: Sequence[Item],
    positions: Sequence[int],
    entry: DataEntry,
    index: int,
    seed: int,
    removal: LeakageRemoval,
) -> list[list[Item]]:
    """Return the items at all positions as often as weight or count ask for, then a random part of them, in order.

    Raises:
        DataError: There is no position, or the weight is too small for one.
    """
    where = f"data.train.{index} ({entry.name})"
    if not positions:
        raise DataError(
            f"{where}: nothing of this data set is left to train on: the leakage filter removed {removal.phrases} "
            "phrases, those that earlier data sets contain are removed as duplicates, and those that lack what the "
            f"task {entry.used_task} needs are left out; choose another split, or remove it from the mixture"
        )
    count = len(positions) if entry.weight is None else round(entry.weight * len(positions))
    count = count if entry.count is None else entry.count
    if count < 1:
        raise DataError(f"{where}: weight {entry.weight:g} of {len(positions)} phrases is less than one; raise it")
    full, rest = divmod(count, len(positions))
    chosen = random.Random(f"{seed} {index} {entry.dataset}").sample(range(len(positions)), rest)
    every = [[items[position] for position in positions]] if full else []
    return every * full + ([[items[positions[place]] for place in sorted(chosen)]] if rest else [])


def _contents(objects: Sequence[MaskObject]) -> list[tuple[Box, str | None]]:
    """Return the boxes and masks of objects, which the digest depends on."""
    return [(item.box, None if item.rle is None else item.rle["counts"]) for item in objects]
