"""Phrases that several records of one image have, about different objects, as in exports with a record per object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sam4mllm.data.sample import Sample
from sam4mllm.utils.messages import first_and_more

_LISTED = 5
_RECORDS = 4


def contradictions(samples: Iterable[Sample]) -> list[tuple[Sample, ...]]:
    """Return the samples of one image and phrase whose objects differ, one tuple for each such phrase, in order.

    Case and white space of phrases are ignored; objects are compared by mask and box. Equal samples are not returned
    alone, because they do not contradict each other.
    """
    groups: dict[tuple[Path, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.image, " ".join(sample.phrase.split()).casefold()), []).append(sample)
    return [tuple(group) for group in groups.values() if len(group) > 1 and len(set(map(_objects, group))) > 1]


def contradiction_note(found: Sequence[Sequence[Sample]]) -> str:
    """Return a sentence that counts the phrases and names the records of the first ones."""
    phrases = [f"{each[0].phrase!r} ({_records(each)})" for each in found]
    return (
        f"{len(found)} phrase(s) have different objects in several records of one image, and all of these answers are "
        f"trained on: {first_and_more(phrases, _LISTED, ', ')}; give all objects in one record, or use distinct phrases"
    )


def _objects(sample: Sample) -> frozenset[object]:
    return frozenset((item.box, None if item.rle is None else item.rle["counts"]) for item in sample.objects)


def _records(samples: Sequence[Sample]) -> str:
    """Return the records of samples; the file is named once if it is the same."""
    first, _, number = samples[0].where.rpartition(" ")
    numbers = [each.where.removeprefix(f"{first} ") for each in samples[:_RECORDS]]
    more = f" and {len(samples) - _RECORDS} more" if len(samples) > _RECORDS else ""
    return f"{samples[0].where.removesuffix(number)}{', '.join(numbers)}{more}"
