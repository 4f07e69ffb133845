"""RefCOCO, RefCOCO+ and RefCOCOg on disk: refs(unc).p beside COCO's instances.json -> samples, a sentence each.

A ref names one annotated object and the sentences that people wrote for it (UNC's `refer` format). The image's file
name is taken from instances.json, because a ref's own may carry one more suffix. gRefCOCO shares the records but for
the target. This module knows nothing about models or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.fields import require_field
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.readers.unpickle import load_plain
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError


@dataclass(frozen=True, slots=True)
class Ref:
    """One ref: the annotations that it means (none for "no target") and its sentences as (sent_id, text)."""

    ref_id: int
    image_id: int
    annotation_ids: tuple[int, ...]
    split: str
    sentences: tuple[tuple[int, str], ...]


def refs(name: str, root: Path, split_by: str) -> tuple[Path, list[Ref]]:
    """The file of refs and every ref in it, of all splits.

    Args:
        name: `refcoco`, `refcoco+` or `refcocog`: the folder under `root`.
        root: the folder that holds the data sets' folders.
        split_by: who split the data: `unc`, `umd` or `google`.

    Raises:
        DataError: the file is missing or not what it promises.
    """
    path = root / name / f"refs({split_by}).p"
    return path, parse_refs(load_plain(path, "the list of refs"), path, _single_target)


def parse_refs(records: object, path: Path, target: Callable[[dict[str, Any], str], tuple[int, ...]]) -> list[Ref]:
    """Every record of a refs file, checked; `target(record, where)` reads the annotations that it means.

    Raises:
        DataError: the first record that is not a ref, by its ref_id or its place in the list.
    """
    if not isinstance(records, list):
        raise DataError(f"{path}: a refs file is a list of refs; found {type(records).__name__}")
    found = []
    for index, record in enumerate(records):
        ref_id = require_field(record, "ref_id", int, f"{path}, record {index}")
        where = f"{path}, ref {ref_id}"
        sentences = []
        for sentence in require_field(record, "sentences", list, where):
            sentences.append(
                (require_field(sentence, "sent_id", int, where), require_field(sentence, "sent", str, where))
            )
        image_id, split = require_field(record, "image_id", int, where), require_field(record, "split", str, where)
        found.append(Ref(ref_id, image_id, target(record, where), split, tuple(sentences)))
    return found


def samples_of_refs(
    found: Sequence[Ref], instances: Instances, name: str, split: str, path: Path, limit: int | None
) -> list[Sample]:
    """A sample for each sentence of each ref of the split, in order; ids are `{name}/{split}/{ref_id}/{sent_id}`.

    Raises:
        DataError: no ref of that split; an id that comes twice; an image or annotation that instances.json does not
            hold.
    """
    chosen = [ref for ref in found if ref.split == split]
    if not chosen:
        splits = ", ".join(sorted({ref.split for ref in found})) or "none"
        raise DataError(f"{path}: no ref belongs to the split {split!r}; the file has: {splits}")
    samples: list[Sample] = []
    seen: set[str] = set()
    for ref in chosen:
        where = f"{path}, ref {ref.ref_id}"
        image = instances.image(ref.image_id, where)
        objects = tuple(instances.object(annotation, ref.image_id, where) for annotation in ref.annotation_ids)
        for sent_id, phrase in ref.sentences:
            identity = f"{name}/{split}/{ref.ref_id}/{sent_id}"
            if identity in seen:
                raise DataError(f"{where}: the sentence {sent_id} comes twice, so {identity} would name two queries")
            seen.add(identity)
            samples.append(Sample(identity, image.path, image.size_wh, phrase, objects))
            if len(samples) == limit:
                return samples
    return samples


def _single_target(record: dict[str, Any], where: str) -> tuple[int, ...]:
    return (require_field(record, "ann_id", int, where),)
