"""The data sets by name: one call reads any of them into samples.

`root` is the folder that LISA's users have: `refcoco/refs(unc).p` and `refcoco/instances.json` (so too `refcoco+`,
`refcocog`, `grefcoco`), `images/mscoco/images/train2014/*.jpg`, `ReasonSeg/{train,val,test}`. This module knows no
format itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.grefcoco import read_grefcoco
from sam4mllm.data.reasonseg import read_reasonseg
from sam4mllm.data.refcoco import read_refcoco
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError

COCO_PICTURES = Path("images/mscoco/images/train2014")


@dataclass(frozen=True, slots=True)
class Dataset:
    """How a data set is read: the format, the folder and the beginning of its ids, and who split it unless told."""

    format: str
    name: str
    split_by: str | None


DATASETS: dict[str, Dataset] = {
    "refcoco": Dataset("refcoco", "refcoco", "unc"),
    "refcoco+": Dataset("refcoco", "refcoco+", "unc"),
    "refcocog": Dataset("refcoco", "refcocog", "umd"),
    "grefcoco": Dataset("grefcoco", "grefcoco", "unc"),
    "reasonseg": Dataset("reasonseg", "reasonseg", None),
    # The embedded data set is written in all three formats; its own name reads the RefCOCO part.
    "shapes": Dataset("refcoco", "refcoco", "unc"),
}


def read_dataset(
    name: str,
    root: Path,
    split: str,
    *,
    images: Path | None = None,
    split_by: str | None = None,
    limit: int | None = None,
) -> list[Sample]:
    """The samples of one split of a data set, in the order of its files.

    Args:
        name: a key of `DATASETS`.
        root: the folder that holds the data sets' folders.
        split: `train`, `val`, `test`, `testA` or `testB`, as the data set has it.
        images: the folder that holds the pictures, where it is not the usual one under `root`.
        split_by: whose split to read (`refs({split_by}).p`): `unc`, `umd` or `google`; None for the usual one.
        limit: at most so many samples, from the beginning; None for all.

    Raises:
        DataError: an unknown name; a folder or file that is missing or not what it promises; an unknown split.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; the known ones are: {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise DataError(f"a limit is at least one sample; got {limit}")
    for what, folder in (("root", root), ("images", images)):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {what} must be the folder that holds the {_holds(name, what)}")
    dataset = DATASETS[name]
    if dataset.split_by is None:
        if split_by is not None:
            raise DataError(f"{name} has one way to be split; leave split_by={split_by!r} out")
        return read_reasonseg(root, split, images=images, limit=limit)
    read = read_grefcoco if dataset.format == "grefcoco" else read_refcoco
    return read(
        dataset.name,
        root,
        split,
        images=root / COCO_PICTURES if images is None else images,
        split_by=dataset.split_by if split_by is None else split_by,
        limit=limit,
    )


def _holds(name: str, what: str) -> str:
    if what == "images":
        return "pictures"
    return "folder ReasonSeg" if DATASETS[name].format == "reasonseg" else f"folder {DATASETS[name].name}"
