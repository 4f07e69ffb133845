"""The table of data sets: one row each. Everything that depends on a data set's name is derived from this table.

A data set is one row here and one reader file that the row names. `register_dataset` adds a row, for instance from a
user's own module:

    register_dataset(DatasetRow("mine", "custom", "my_package.reader:read", needs=("path",), protocol="grefcoco"))

A reader file holds up to five functions:

    read(row, *, root, split, ..., limit) -> list[Sample]           at most `limit` samples; dialogues for kind "chat"
    splits(row, *, root, ...) -> Collection[str]                    the names of the splits that exist
    images_by_split(row, *, root, ...) -> dict[str, list[Path]]     optional: faster than reading every split
    captions(row, *, root, split, ..., limit) -> list[GroundedCaption]   optional: the data set has grounded captions
    coco_ids(row, *, root, split, ...) -> dict[Path, int]           optional: images of COCO under names of their own

Each gets the row, and by keyword those of `LOCATION_KEYS` that the row needs or takes (`splits` and `images_by_split`
without `split`). A key that was not given is None, but `split_by` falls back to the row's.

Nothing heavy is imported here, so the parser of the command line can use the table; readers are imported when needed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_write_text

Kind = Literal["benchmark", "generated", "custom", "boxes", "chat"]
Task = Literal["segment", "region-caption", "grounded-caption", "chat"]

LOCATION_KEYS = ("root", "split", "split_by", "path", "phrases", "images", "columns")
"""The keys of a recipe's data entry that locate a data set; each has an option of the same name on the command line."""

GENERATED_MARKER = "shapes.json"
"""The file beside generated data sets that records their generator and its arguments."""


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One data set of the table.

    name: the value of `dataset` in recipes and of `--dataset`.
    kind: "benchmark" (published, under a root), "generated" (by `sam4mllm.synthetic`), "custom" (a user's own data,
        located by `path`), "boxes" (published, with boxes and no masks) or "chat" (dialogues without masks).
    reader: "module:function".
    needs, takes: the required and the optional keys of `LOCATION_KEYS`.
    folder: the name of the folder under `root`, if it is not the data set's name.
    splits: "module:function"; a data set that needs `root` has it, or is `part_of` one that has it.
    images_by_split: "module:function"; None: the images are found by reading every split.
    split_by: the default of the key `split_by`: the name in brackets in `refs(unc).p`.
    protocol: the evaluation protocol of masks (a name in `sam4mllm.evaluation.protocols`); None for boxes and chat.
    published: the data set's name in `sam4mllm.evaluation.published`; None if no published figures are comparable.
    coco_images: whether the images are COCO's, in one folder that several data sets share.
    creates_images: whether the reader writes to the folder `images`, which then need not exist.
    part_of: the data set whose splits these images belong to, if it is another one.
    captions: "module:function"; None if the data set has no grounded captions.
    coco_ids: "module:function"; None if no image is one of COCO's, or if the images have COCO's names.
    task: what the data set is trained on for unless a recipe names another task; None: "chat" or "segment".
    """

    name: str
    kind: Kind
    reader: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    folder: str | None = None
    splits: str | None = None
    images_by_split: str | None = None
    split_by: str | None = None
    protocol: str | None = None
    published: str | None = None
    coco_images: bool = False
    creates_images: bool = False
    part_of: str | None = None
    captions: str | None = None
    coco_ids: str | None = None
    task: Task | None = None

    @property
    def usual_task(self) -> Task:
        """The task of an entry of a recipe that names none."""
        return self.task or ("chat" if self.kind == "chat" else "segment")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the data set can be trained on for."""
        if self.kind == "chat":
            return ("chat",)
        if self.captions is None:
            return "segment", "region-caption"
        return "segment", "region-caption", "grounded-caption"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the data set needs or takes."""
        return (*self.needs, *self.takes)

    def folder_in(self, root: Path) -> Path:
        """Return the data set's folder under `root`."""
        return root / (self.folder or self.name)


def _refs_row(
    name: str, kind: Kind = "benchmark", *, module: str = "refcoco", folder: str | None = None, split_by: str = "unc"
) -> DatasetRow:
    """Build the row of a data set in the format of RefCOCO: a file of refs beside COCO's instances."""
    return DatasetRow(
        name,
        kind,
        reader=f"sam4mllm.data.readers.{module}:read",
        splits=f"sam4mllm.data.readers.{module}:splits",
        images_by_split=f"sam4mllm.data.readers.{module}:images_by_split",
        needs=("root", "split"),
        takes=("split_by", "images"),
        folder=folder or name,
        split_by=split_by,
        protocol=module,
        published=name if kind == "benchmark" else None,
        coco_images=True,
    )


_ROWS = (
    _refs_row("refcoco"),
    _refs_row("refcoco+"),
    _refs_row("refcocog", split_by="umd"),
    _refs_row("grefcoco", module="grefcoco"),
    DatasetRow(
        "reasonseg",
        "benchmark",
        reader="sam4mllm.data.readers.reasonseg:read",
        splits="sam4mllm.data.readers.reasonseg:splits",
        images_by_split="sam4mllm.data.readers.reasonseg:images_by_split",
        needs=("root", "split"),
        takes=("images",),
        folder="ReasonSeg",
        protocol="reasonseg",
        published="reasonseg",
    ),
    # The generated data are written in the formats of RefCOCO, gRefCOCO and ReasonSeg; this name reads RefCOCO's part.
    _refs_row("shapes", "generated", folder="refcoco"),
    # Custom data may have several objects or none per phrase, which only gRefCOCO's protocol defines scores for.
    DatasetRow(
        "jsonl",
        "custom",
        reader="sam4mllm.data.readers.jsonl:read",
        captions="sam4mllm.data.readers.jsonl:captions",
        needs=("path",),
        takes=("images",),
        protocol="grefcoco",
    ),
    DatasetRow(
        "coco",
        "custom",
        reader="sam4mllm.data.readers.coco:read",
        needs=("path", "phrases"),
        takes=("images",),
        protocol="grefcoco",
    ),
    DatasetRow(
        "hub",
        "custom",
        reader="sam4mllm.data.readers.hub:read",
        needs=("path",),
        takes=("split", "images", "columns"),
        protocol="grefcoco",
        creates_images=True,
    ),
    DatasetRow(
        "flickr30k",
        "boxes",
        reader="sam4mllm.data.readers.flickr30k:read",
        splits="sam4mllm.data.readers.flickr30k:splits",
        images_by_split="sam4mllm.data.readers.flickr30k:images_by_split",
        captions="sam4mllm.data.readers.flickr30k:captions",
        needs=("root", "split"),
        takes=("images",),
        folder="flickr30k_entities",
        task="grounded-caption",
    ),
    DatasetRow(
        "visual-genome",
        "boxes",
        reader="sam4mllm.data.readers.visual_genome:read",
        coco_ids="sam4mllm.data.readers.visual_genome:coco_ids",
        needs=("path",),
        takes=("images",),
        task="region-caption",
    ),
    *(
        DatasetRow(
            name,
            "custom",
            reader=f"sam4mllm.data.readers.{module}:read",
            needs=("path",),
            takes=("images",),
            protocol="grefcoco",
        )
        for name, module in (
            ("labelstudio", "label_studio"),
            ("cvat", "cvat"),
            ("labelme", "labelme"),
            ("coco-categories", "coco_categories"),
        )
    ),
    DatasetRow("chat", "chat", reader="sam4mllm.data.readers.chat:read", needs=("path",), takes=("images",)),
    DatasetRow(
        "pope",
        "chat",
        reader="sam4mllm.data.readers.pope:read",
        needs=("path",),
        takes=("images",),
        coco_images=True,
    ),
    DatasetRow(
        "reasonseg-explanations",
        "chat",
        reader="sam4mllm.data.readers.chat:read_explanations",
        needs=("root",),
        takes=("images",),
        folder="ReasonSeg",
        part_of="reasonseg",
    ),
)

DATASETS: dict[str, DatasetRow] = {row.name: row for row in _ROWS}
"""The table: every row by its name, in the order in which papers report them."""


def register_dataset(row: DatasetRow) -> None:
    """Add a row to the table.

    Raises:
        ValueError: The name is taken, or the row contradicts itself.
    """
    if row.name in DATASETS:
        raise ValueError(f"data set {row.name!r} is registered already; choose another name")
    if unknown := [key for key in row.keys if key not in LOCATION_KEYS]:
        raise ValueError(f"data set {row.name!r}: unknown key {unknown[0]!r}; the keys are {', '.join(LOCATION_KEYS)}")
    if ("root" in row.needs) == ("path" in row.needs):
        raise ValueError(f"data set {row.name!r}: it must need either root or path; found needs={row.needs}")
    if "root" in row.needs and row.splits is None and row.part_of is None:
        raise ValueError(f"data set {row.name!r}: it needs root, so name a function that lists its splits")
    if (row.protocol is None) != (row.kind in ("boxes", "chat")):
        raise ValueError(f"data set {row.name!r}: name an evaluation protocol, unless its kind is boxes or chat")
    if row.usual_task not in row.tasks:
        raise ValueError(f"data set {row.name!r}: its task is one of {', '.join(row.tasks)}; found {row.task}")
    DATASETS[row.name] = row


def dataset_names(*kinds: Kind) -> tuple[str, ...]:
    """Return the names of the data sets of these kinds, or all names, in the table's order."""
    return tuple(name for name, row in DATASETS.items() if not kinds or row.kind in kinds)


def scored_dataset_names() -> tuple[str, ...]:
    """Return the names of the data sets that have masks or boxes to be scored against: all but chat."""
    return tuple(name for name, row in DATASETS.items() if row.kind != "chat")


def dataset_row(name: str) -> DatasetRow:
    """Return the row of a data set.

    Raises:
        DataError: Unknown name; the message suggests the nearest one.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; {suggestion(name)}")
    return DATASETS[name]


def suggestion(name: str) -> str:
    """Return the hint for an unknown name: the nearest known name, or all names if none is near."""
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"the data sets are {', '.join(DATASETS)}"


def load_function(reference: str) -> Callable[..., Any]:
    """Import the function that a "module:function" reference names."""
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def mark_generated(root: Path, *, scenes: int, held_out: int, seed: int) -> None:
    """Mark the data sets under `root` as generated: their formats and names are those of real benchmarks."""
    made = {"generator": "sam4mllm shapes", "scenes": scenes, "held_out": held_out, "seed": seed}
    atomic_write_text(root / GENERATED_MARKER, json.dumps(made, indent=2) + "\n")


def is_generated(root: Path) -> bool:
    """Return whether the data sets under `root` are generated, so that no published figure is comparable."""
    return (root / GENERATED_MARKER).is_file()
