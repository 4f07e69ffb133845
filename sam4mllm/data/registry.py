"""The data sets by name: one call reads any of them into samples, or into chat.

Of a published data set, `root` is the folder that LISA's users have: `refcoco/refs(unc).p` and `refcoco/instances.json`
(so too `refcoco+`, `refcocog`, `grefcoco`), `images/mscoco/images/train2014/*.jpg`, `ReasonSeg/{train,val,test}`. Data
of one's own is named by its `path`. This module knows no format itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sam4mllm.data.entry import USUAL_SPLIT_BY, DataEntry
from sam4mllm.data.readers.chat import Dialogue, read_chat, read_explanations
from sam4mllm.data.readers.coco import read_coco
from sam4mllm.data.readers.grefcoco import grefs
from sam4mllm.data.readers.hub import read_hub
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.readers.jsonl import read_jsonl
from sam4mllm.data.readers.reasonseg import images_by_split, read_reasonseg
from sam4mllm.data.readers.refcoco import Ref, refs, samples_of_refs
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError

COCO_IMAGES = Path("images/mscoco/images/train2014")


@dataclass(frozen=True, slots=True)
class Dataset:
    """How a data set is read: the format, the folder and the beginning of its ids, and who split it unless told."""

    format: str
    name: str
    split_by: str | None = None


DATASETS: dict[str, Dataset] = {
    "refcoco": Dataset("refcoco", "refcoco", USUAL_SPLIT_BY["refcoco"]),
    "refcoco+": Dataset("refcoco", "refcoco+", USUAL_SPLIT_BY["refcoco+"]),
    "refcocog": Dataset("refcoco", "refcocog", USUAL_SPLIT_BY["refcocog"]),
    "grefcoco": Dataset("grefcoco", "grefcoco", USUAL_SPLIT_BY["grefcoco"]),
    "reasonseg": Dataset("reasonseg", "reasonseg"),
    # The embedded data set is written in all three formats; its own name reads the RefCOCO part.
    "shapes": Dataset("refcoco", "refcoco", USUAL_SPLIT_BY["shapes"]),
    "jsonl": Dataset("jsonl", "jsonl"),
    "coco": Dataset("coco", "coco"),
    "hub": Dataset("hub", "hub"),
}
"""The data sets of samples; chat is read by `read_dialogues`."""


KnownImages: TypeAlias = dict[tuple[str, Path, str | None, Path | None], dict[str, list[Path]]]
"""The images of every split of the sets that were parsed, by name, root, split_by and images."""


def read_samples(entry: DataEntry, known: KnownImages | None = None) -> list[Sample]:
    """The samples of an entry of a recipe's `data`, or of the same options on the command line.

    The images of a parsed set's splits are noted in `known`, for `images_of_splits`.

    Raises:
        DataError: a folder or file that is missing or not what it promises; an unknown split; an entry of chat.
    """
    if entry.path is None:
        assert entry.root is not None and entry.split is not None, "checked by DataEntry"
        return read_dataset(
            entry.dataset,
            entry.root,
            entry.split,
            images=entry.images,
            split_by=entry.split_by,
            limit=entry.limit,
            known=known,
        )
    _check_folders(entry.dataset, images=entry.images if entry.dataset != "hub" else None)
    if entry.dataset == "jsonl":
        return read_jsonl(entry.path, images=entry.images, limit=entry.limit)
    if entry.dataset == "coco":
        assert entry.phrases is not None, "checked by DataEntry"
        return read_coco(entry.path, entry.phrases, images=entry.images, limit=entry.limit)
    if entry.dataset == "hub":
        columns = {str(ours): theirs for ours, theirs in (entry.columns or {}).items()}
        return read_hub(entry.path, entry.split, columns=columns, images=entry.images, limit=entry.limit)
    raise DataError(f"{entry.name}: chat has no masks; it can be trained on, or given to evaluate as --chat")


def read_with_masks(entry: DataEntry) -> list[Sample]:
    """The samples of an entry, all of them with masks: what answers are compared with.

    Raises:
        DataError: the data set cannot be read; a sample has boxes and no masks.
    """
    samples = read_samples(entry)
    if bare := [sample.id for sample in samples if not sample.has_masks]:
        raise DataError(
            f"{entry.name}: {bare[0]} has boxes and no masks, and answers are judged by masks; leave such samples out"
        )
    return samples


def read_dialogues(entry: DataEntry) -> list[Dialogue]:
    """The chat of an entry whose data set is one of `CHAT_SETS`.

    Raises:
        DataError: a folder or file that is missing or not what it promises.
    """
    _check_folders(entry.dataset, root=entry.root, images=entry.images)
    if entry.dataset == "chat":
        assert entry.path is not None, "checked by DataEntry"
        return read_chat(entry.path, images=entry.images, limit=entry.limit)
    assert entry.root is not None, "checked by DataEntry"
    return read_explanations(entry.root, images=entry.images, limit=entry.limit)


def images_of_splits(entry: DataEntry, known: KnownImages) -> dict[str, list[Path]]:
    """The images of every split that the root of a published data set holds; cheaper than reading the samples.

    A set whose images are `known` is not parsed again.

    Raises:
        DataError: a folder or file that is missing or not what it promises.
    """
    assert entry.root is not None, "only the published data sets have splits under a root"
    _check_folders(entry.dataset, root=entry.root, images=entry.images)
    if entry.dataset in ("reasonseg", "reasonseg-explanations"):
        return images_by_split(entry.root, images=entry.images if entry.dataset == "reasonseg" else None)
    place = (DATASETS[entry.dataset].name, entry.root, entry.split_by, entry.images)
    if place not in known:
        known[place] = _by_split(*_parse(entry.dataset, entry.root, entry.split_by, entry.images))
    return known[place]


def _parse(name: str, root: Path, split_by: str | None, images: Path | None) -> tuple[Path, list[Ref], Instances]:
    """The file of refs of a data set, every ref in it, and the instances."""
    path, found = refs_of(name, root, split_by)
    folder = DATASETS[name].name
    images = root / COCO_IMAGES if images is None else images
    return path, found, Instances(root / folder / "instances.json", images, folder)


def _by_split(path: Path, found: Sequence[Ref], instances: Instances) -> dict[str, list[Path]]:
    images: dict[str, dict[Path, None]] = {}
    for ref in found:
        images.setdefault(ref.split, {})[instances.path_of(ref.image_id, f"{path}, ref {ref.ref_id}")] = None
    return {split: list(paths) for split, paths in images.items()}


def refs_of(name: str, root: Path, split_by: str | None = None) -> tuple[Path, list[Ref]]:
    """The file of refs of a data set that has one, and every ref in it; `split_by` is None for the usual one.

    Raises:
        DataError: the file is missing or not what it promises.
    """
    dataset = DATASETS[name]
    by = dataset.split_by if split_by is None else split_by
    assert by is not None, f"{name} has no refs"
    return (grefs if dataset.format == "grefcoco" else refs)(dataset.name, root, by)


def read_dataset(
    name: str,
    root: Path,
    split: str,
    *,
    images: Path | None = None,
    split_by: str | None = None,
    limit: int | None = None,
    known: KnownImages | None = None,
) -> list[Sample]:
    """The samples of one split of a published data set, in the order of its files.

    Args:
        name: a key of `DATASETS` that is read from a root.
        root: the folder that holds the data sets' folders.
        split: `train`, `val`, `test`, `testA` or `testB`, as the data set has it.
        images: the folder that holds the images, where it is not the usual one under `root`.
        split_by: whose split to read (`refs({split_by}).p`): `unc`, `umd` or `google`; None for the usual one.
        limit: at most so many samples, from the beginning; None for all.
        known: as for `read_samples`.

    Raises:
        DataError: an unknown name; a folder or file that is missing or not what it promises; an unknown split.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; the known ones are: {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise DataError(f"a limit is at least one sample; got {limit}")
    dataset = DATASETS[name]
    if dataset.format in ("jsonl", "coco", "hub"):
        raise DataError(f"{name} is named by its path, not by root and split; read it by read_samples")
    _check_folders(name, root=root, images=images)
    if dataset.split_by is None:
        if split_by is not None:
            raise DataError(f"{name} has one way to be split; leave split_by={split_by!r} out")
        return read_reasonseg(root, split, images=images, limit=limit)
    path, found, instances = _parse(name, root, split_by, images)
    if known is not None:
        # A ref of another split that points nowhere is told to whoever asks for that split.
        with suppress(DataError):
            known[dataset.name, root, split_by, images] = _by_split(path, found, instances)
    return samples_of_refs(found, instances, dataset.name, split, path, limit)


def _check_folders(name: str, **folders: Path | None) -> None:
    for what, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {what} must be the folder that holds the {_holds(name, what)}")


def _holds(name: str, what: str) -> str:
    if what == "images":
        return "images"
    return "folder ReasonSeg" if name.startswith("reasonseg") else f"folder {DATASETS[name].name}"
