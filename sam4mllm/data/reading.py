"""Reading any data set of the table: `read_dataset` by name, the other functions by an entry of a recipe's `data`.

For published data sets, `root` is a folder in the layout of LISA's repository: `refcoco/refs(unc).p` and
`refcoco/instances.json` (also `refcoco+`, `refcocog`, `grefcoco`), `images/mscoco/images/train2014/*.jpg`,
`ReasonSeg/{train,val,test}`; and `flickr30k_entities`. Custom data are located by `path`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sam4mllm.data.entry import DataEntry, data_entry
from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.problems import listing_problems
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.registry import DatasetRow, dataset_names, dataset_row, load_function
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.paths import with_start

logger = logging.getLogger(__name__)

AnyItem: TypeAlias = "Sample | GroundedCaption | Dialogue"
"""What a model is trained on: a phrase with its objects, a caption with its mentions, or chat."""

TRAIN = "train"
_LISTED = 5
_USUAL_ORDER = (TRAIN, "val", "testA", "testB", "test")


def read_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    phrases: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    split_by: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> list[Sample]:
    """Read the samples of a data set, in the order of its files.

    Args:
        name: A data set of the table (`sam4mllm.data.registry.DATASETS`), other than chat.
        root: The folder that holds the folders of the published data sets.
        split: `train`, `val`, `test`, `testA` or `testB`, as the data set has it.
        path: For custom data, in place of `root`: the JSONL file, COCO's instances, or a folder of `datasets`.
        phrases: For `coco`: the JSONL file of phrases.
        images: The folder of the images; None for the usual one.
        split_by: Which file of refs to read, `refs({split_by}).p`: `unc`, `umd` or `google`; None for the usual one.
        columns: For `hub`: the data set's column for each of image, phrase, masks, boxes and id.
        limit: The maximum number of samples, from the beginning; None for all.
        skip_bad: Whether bad records are left out, and counted in a warning, instead of raising an error.

    Raises:
        DataError: An unknown name or split; an argument that is missing or that the data set does not take; a folder
            or file that is missing or malformed.

    Example, on a small generated data set:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sam4mllm import read_dataset, write_dataset
        >>> from sam4mllm.data.readers.jsonl import write_jsonl
        >>> with TemporaryDirectory() as folder:
        ...     root, custom = Path(folder, "shapes"), Path(folder, "custom.jsonl")
        ...     write_dataset(root, scenes=2, seed=0)
        ...     samples = read_dataset("refcoco", root, "val")
        ...     write_jsonl(samples[:3], custom)
        ...     read_again = read_dataset("jsonl", path=custom)
        >>> samples[0].id, samples[0].phrase, samples[0].size_wh
        ('refcoco/val/7/24', 'purple square', (216, 256))
        >>> read_again == samples[:3]
        True
    """
    entry = data_entry(
        name,
        root=root,
        split=split,
        path=path,
        phrases=phrases,
        images=images,
        split_by=split_by,
        columns=columns,
        limit=limit,
        skip_bad=skip_bad,
    )
    return read_samples(entry)


def read_samples(entry: DataEntry) -> list[Sample]:
    """Read the samples of an entry of a recipe's `data`, in the order of the data set's files.

    Raises:
        DataError: A folder or file that is missing or malformed; an unknown split; an entry of chat.
    """
    if entry.is_chat:
        raise DataError(
            f"{entry.name}: chat has no masks; use it for training, or pass it to `sam4mllm evaluate` as --chat"
        )
    samples = _read(entry, entry.row.reader)
    return samples if isinstance(samples, list) else list(samples)


def read_items(entry: DataEntry) -> Sequence[AnyItem]:
    """Read what an entry's task is trained on: samples, grounded captions or dialogues.

    Samples of Visual Genome are made on access, because all of them would take gigabytes.

    Raises:
        DataError: A folder or file that is missing or malformed; an unknown split.
    """
    if entry.used_task == "grounded-caption":
        return read_captions(entry)
    return _read(entry, entry.row.reader)


def read_with_masks(entry: DataEntry) -> list[Sample]:
    """Read the samples of an entry to score answers against them; each object must have a mask.

    Raises:
        DataError: The data set cannot be read; a sample has boxes and no masks.
    """
    samples = read_samples(entry)
    if without_masks := [sample.id for sample in samples if not sample.has_masks]:
        raise DataError(
            f"{entry.name}: {without_masks[0]} has boxes and no masks, but scores compare masks; remove such samples"
        )
    return samples


def read_captions(entry: DataEntry) -> list[GroundedCaption]:
    """Read the grounded captions of an entry, in the order of the data set's files.

    Raises:
        DataError: A folder or file that is missing or malformed; a data set without grounded captions.
    """
    if entry.row.captions is None:
        known = [name for name in dataset_names() if dataset_row(name).captions is not None]
        raise DataError(f"{entry.name}: has no grounded captions; those of {', '.join(known)} can be read")
    return _read(entry, entry.row.captions)


def read_dialogues(entry: DataEntry) -> list[Dialogue]:
    """Read the dialogues of an entry of chat.

    Raises:
        DataError: A folder or file that is missing or malformed.
    """
    assert entry.is_chat, f"{entry.name} holds samples; read them with read_samples"
    return _read(entry, entry.row.reader)


def coco_ids_of(entry: DataEntry) -> dict[Path, int]:
    """Return the COCO ids of an entry's images that are COCO's under other names; {} for most data sets.

    Raises:
        DataError: A file that is missing or malformed.
    """
    row = entry.row
    return {} if row.coco_ids is None else load_function(row.coco_ids)(row, **_keys(row, entry))


def images_of_splits(entry: DataEntry) -> dict[str, list[Path]]:
    """List the images of every split of a data set under a root, usually without reading its samples.

    Raises:
        DataError: A folder or file that is missing or malformed.
    """
    _check_folders(entry)
    row = entry.row
    keys = _keys(row, entry)
    if row.part_of is not None:
        # The entry's `images` is the folder of this part's images, not of the other splits'.
        row = dataset_row(row.part_of)
        keys = _keys(row, entry) | {"images": None}
    keys.pop("split")
    if row.images_by_split is not None:
        return load_function(row.images_by_split)(row, **keys)
    read = load_function(row.reader)
    return {
        split: [sample.image for sample in read(row, **keys, split=split, limit=None)]
        for split in _split_names(row, entry)
    }


def benchmarks_in(root: Path) -> list[str]:
    """Return the names of the benchmarks that have a folder in `root`, in the table's order."""
    return [name for name in dataset_names("benchmark") if dataset_row(name).folder_in(root).is_dir()]


def held_out_splits(name: str, root: Path, split_by: str | None = None) -> list[str]:
    """Return the splits of a data set under `root` other than train: val, testA, testB, test, then any others.

    Raises:
        DataError: An unknown data set; a file that is missing or malformed; train is the only split.
    """
    row = dataset_row(name)
    if row.splits is None:
        raise DataError(f"{name} has no splits under a root; it is located by {' and '.join(row.needs)}")
    held_out = [split for split in split_names(name, root, split_by) if split != TRAIN]
    if not held_out:
        raise DataError(
            f"{row.folder_in(root)}: holds no split to evaluate on, only training data; name a split with --split"
        )
    return held_out


def split_names(name: str, root: Path, split_by: str | None = None) -> list[str]:
    """Return the splits of a data set under `root`: train, val, testA, testB, test, then any others.

    Raises:
        DataError: An unknown data set; a file that is missing or malformed.
    """
    row = dataset_row(name)
    found = set(_split_names(row, data_entry(name, root=root, split=TRAIN, split_by=split_by)))
    return [split for split in _USUAL_ORDER if split in found] + sorted(found.difference(_USUAL_ORDER))


def _read(entry: DataEntry, reader: str) -> Any:
    """Call a reader ("module:function") of the entry's data set; with `skip_bad`, log how many records it leaves out.

    Raises:
        DataError: As the reader; with `skip_bad`, no record is left.
    """
    _check_folders(entry)
    read = load_function(reader)
    if not entry.skip_bad:
        return read(entry.row, **_keys(entry.row, entry), limit=entry.limit)
    with listing_problems() as problems:
        items = read(entry.row, **_keys(entry.row, entry), limit=entry.limit)
    if problems and not items:
        raise DataError(f"{entry.name}: all of its records are bad, the first one: {problems[0]}")
    if problems:
        more = "; and others" if len(problems) > _LISTED else ""
        listed = "; ".join(map(str, problems[:_LISTED]))
        logger.warning("%s: %d bad record(s) left out: %s%s", entry.name, len(problems), listed, more)
    return items


def _split_names(row: DatasetRow, entry: DataEntry) -> Collection[str]:
    assert row.splits is not None, "register_dataset requires it of data sets under a root"
    keys = _keys(row, entry)
    keys.pop("split")
    return load_function(row.splits)(row, **keys)


def _keys(row: DatasetRow, entry: DataEntry) -> dict[str, Any]:
    """Return the location keys of a row with the entry's values."""
    keys = {key: getattr(entry, key) for key in row.keys}
    if keys.get("split_by", row.split_by) is None and row.split_by is not None:
        keys["split_by"] = row.split_by
    return keys


def _check_folders(entry: DataEntry) -> None:
    row = entry.row
    if entry.root is not None and not entry.root.is_dir():
        raise DataError(
            f"{with_start(entry.root)}: no such folder; root must be the folder that holds the folder "
            f"{row.folder or row.name}"
        )
    if entry.images is not None and not row.creates_images and not entry.images.is_dir():
        raise DataError(f"{with_start(entry.images)}: no such folder; images must be the folder that holds the images")
