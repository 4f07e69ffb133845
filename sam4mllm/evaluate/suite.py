"""The suite: what one command evaluates, from the data sets and splits that were named and those that the root holds.

It looks at names and at the splits that files hold; it reads no sample and knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sam4mllm.data.entry import DataEntry, DatasetName
from sam4mllm.data.generated import is_generated
from sam4mllm.data.registry import DATASETS
from sam4mllm.data.splits import held_benchmarks, held_out_splits
from sam4mllm.errors import DataError
from sam4mllm.evaluate.protocols import PROTOCOL_OF_DATASET

ALL = "all"
"""The name that stands for every benchmark under the root."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What one command evaluates. `named` says that it named one data set and one split, and so means no more."""

    entries: tuple[DataEntry, ...]
    named: bool

    def output(self, home: Path) -> Path:
        """The folder for all of it unless told: `home`/evaluate, or in it the split's own where one was named."""
        folder = home / "evaluate"
        return _split_folder(folder, self.entries[0]) if self.named else folder

    def folders(self, output: Path) -> list[Path]:
        """The folder of each entry: `output` itself where one split was named, else one in it for each."""
        return [output] if self.named else [_split_folder(output, entry) for entry in self.entries]

    def is_comparable(self, protocol: str | None = None) -> bool:
        """Whether every entry is `comparable`."""
        return all(comparable(entry, protocol) for entry in self.entries)


def choose_suite(
    datasets: Sequence[str],
    splits: Sequence[str],
    root: Path,
    *,
    images: Path | None = None,
    split_by: str | None = None,
    limit: int | None = None,
) -> Suite:
    """What to evaluate, data set by data set.

    Args:
        datasets: names of data sets; "all" stands for every benchmark that `root` holds.
        splits: names of splits; none for every split that is not for training. Under "all" a data set that lacks one of
            them goes without it.
        root: the folder that holds the data sets' folders.
        images: the folder of the images, where it is not the usual one; COCO's where there are several data sets.
        split_by: whose split, for a single data set.
        limit: at most so many samples of each split.

    Raises:
        DataError: nothing to evaluate; `split_by` for several data sets; files that are missing or not what they
            promise.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; root must be the folder that holds the data sets' folders")
    everything = ALL in datasets
    names = held_benchmarks(root) if everything else list(dict.fromkeys(datasets))
    if not names:
        raise DataError(f"{root}: holds no data set to evaluate (refcoco, refcoco+, refcocog, grefcoco, ReasonSeg)")
    if split_by is not None and (everything or len(names) > 1):
        raise DataError(f"--split-by {split_by} says who split one data set; give a single --dataset with it")
    entries = []
    for name in names:
        chosen = list(dict.fromkeys(splits))
        if everything or not chosen:
            held = held_out_splits(name, root, split_by)
            chosen = [split for split in chosen if split in held] if chosen else held
        # ReasonSeg's images lie beside its JSON files, wherever COCO's are.
        coco = everything or len(names) > 1
        own = None if coco and DATASETS[name].format == "reasonseg" else images
        entries += [_entry(name, root, split, split_by, own, limit) for split in chosen]
    if not entries:
        raise DataError(f"{root}: no data set there has the split {' or '.join(splits)}")
    return Suite(tuple(entries), named=not everything and len(names) == len(set(splits)) == 1)


def comparable(entry: DataEntry, protocol: str | None = None) -> bool:
    """Whether published figures are on the very same sentences and judged alike.

    So they are for a whole split of real data that is split as usual, under its own protocol.
    """
    if entry.root is None or protocol not in (None, PROTOCOL_OF_DATASET[entry.dataset]):
        return False
    usual = entry.limit is None and entry.split_by in (None, DATASETS[entry.dataset].split_by)
    return usual and not is_generated(entry.root)


def _entry(
    name: str, root: Path, split: str, split_by: str | None, images: Path | None, limit: int | None
) -> DataEntry:
    return DataEntry(
        dataset=cast(DatasetName, name), root=root, split=split, split_by=split_by, images=images, limit=limit
    )


def _split_folder(home: Path, entry: DataEntry) -> Path:
    return home / f"{entry.dataset}-{entry.split_name}"
