"""Published results of the tasks without masks: figures in percent, quoted from their sources and not measured here.

They are printed only beside figures on the same data, which is found by its numbers of items:

- rec: Acc@0.5 on RefCOCO/+/g, compared as cIoU is (`evaluation.suite.is_comparable`).
- region-caption: the 5,000 objects in 4,650 images of RefCOCOg's google split val (the sizes of its files, as the data
  set's entries in TensorFlow Datasets and in later papers state them).
- pope: 500 images of COCO's val2014, with 1,500 questions of each label. The published figures on `random` are those of
  the older file of 2,910 lines, of which 1,410 are "no": their share of yes, precision and recall fit no other number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NEXT_CHAT = "NExT-Chat's paper (arXiv 2311.04498)"

_SPLITS = (
    *(("refcoco", split) for split in ("val", "testA", "testB")),
    *(("refcoco+", split) for split in ("val", "testA", "testB")),
    *(("refcocog", split) for split in ("val", "test")),
)

# System, source, Acc@0.5 on the eight splits of RefCOCO, RefCOCO+ and RefCOCOg.
_REC = (
    ("NExT-Chat-7B", _NEXT_CHAT, "85.5 90.0 77.9   77.2 84.5 68.0   80.1 79.8"),
    ("Shikra-7B (boxes as text)", _NEXT_CHAT, "87.0 90.6 80.2   81.6 87.4 72.1   82.3 82.2"),
)

# Figures of NExT-Chat-7B for each file of POPE.
_POPE = {
    "random": {"accuracy": 87.70, "precision": 93.46, "recall": 81.87, "f1": 87.28, "yes": 45.15},
    "popular": {"accuracy": 84.57, "precision": 86.54, "recall": 81.87, "f1": 84.14, "yes": 47.30},
    "adversarial": {"accuracy": 81.93, "precision": 82.02, "recall": 81.80, "f1": 81.91, "yes": 49.87},
}

# The numbers of questions with the labels yes and no.
_POPE_LABELS = {"random": (1500, 1410), "popular": (1500, 1500), "adversarial": (1500, 1500)}
_POPE_IMAGES = 500

_REGION_CAPTION_SIZE = (5000, 4650)


@dataclass(frozen=True, slots=True)
class PublishedTaskRow:
    """One system's figures on one split for a task, by their names in `TaskScores.figures`, in percent.

    CIDEr-D is in the unit of papers, 100 times the mean. `meteor` is quoted and not computed here.
    """

    system: str
    source: str
    figures: Mapping[str, float]


def published_task_rows(task: str, dataset: str, split: str) -> list[PublishedTaskRow]:
    """Return the published rows for a task on a split, in the order of the tables; none for any other data."""
    if task == "rec" and (dataset, split) in _SPLITS:
        column = _SPLITS.index((dataset, split))
        return [
            PublishedTaskRow(system, source, {"acc_50": float(printed.split()[column])})
            for system, source, printed in _REC
        ]
    if task == "region-caption" and (dataset, split) == ("refcocog", "val"):
        return [
            PublishedTaskRow("NExT-Chat-7B", _NEXT_CHAT, {"cider_d": 79.6, "meteor": 12.0}),
            PublishedTaskRow("NExT-Chat-7B ft", f"{_NEXT_CHAT}, ICML 2024", {"cider_d": 114.0}),
        ]
    kind = _pope_kind(split) if task == "pope" else None
    return [PublishedTaskRow("NExT-Chat-7B", _NEXT_CHAT, _POPE[kind])] if kind is not None else []


def is_published_pope(split: str, yes: int, no: int, images: int) -> bool:
    """Return whether a file of POPE's name has the numbers of questions that the published figures are on."""
    kind = _pope_kind(split)
    return kind is not None and (yes, no) == _POPE_LABELS[kind] and images == _POPE_IMAGES


def is_published_region_caption(dataset: str, split_by: str | None, split: str, objects: int, images: int) -> bool:
    """Return whether data are RefCOCOg's google split val, which the published captions are on."""
    return (dataset, split_by, split) == ("refcocog", "google", "val") and (objects, images) == _REGION_CAPTION_SIZE


def _pope_kind(split: str) -> str | None:
    """Return the kind of a file that is named as POPE's are, such as "coco_pope_random"."""
    return next((kind for kind in _POPE if split == f"coco_pope_{kind}"), None)
