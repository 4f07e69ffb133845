"""The splits that one evaluation covers: those that were named, or all held-out splits under a root folder.

Only the names of splits are read from the data sets' files here, no samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from sam4mllm.data.entry import DataEntry, data_entry
from sam4mllm.data.image_sources import ImageSource
from sam4mllm.data.reading import benchmarks_in, held_out_splits
from sam4mllm.data.records import file_exists
from sam4mllm.data.registry import DATASETS, dataset_names, dataset_row, is_generated
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ArgumentError, DataError
from sam4mllm.evaluation.published import has_benchmark_size

ALL = "all"
"""The name of all benchmarks under the root together."""


class DataOptions(TypedDict, total=False):
    """The arguments of `read_dataset` besides name, root and split; None is the same as leaving one out."""

    path: str | Path | None
    phrases: str | Path | None
    columns: Mapping[str, str] | None
    images: str | Path | None
    split_by: str | None
    limit: int | None


@dataclass(frozen=True, slots=True)
class Suite:
    """The splits that one evaluation covers; `named` is whether it names a single data set and a single split."""

    entries: tuple[DataEntry, ...]
    named: bool

    def default_output(self, home: Path, name: str = "evaluate") -> Path:
        """Return the default output folder: `home`/`name`, or the split's folder in it if one split was named."""
        folder = home / name
        return _split_folder(folder, self.entries[0]) if self.named else folder

    def folders(self, output: Path) -> list[Path]:
        """Return the folder of each entry: `output` itself if one split was named, else one folder in it for each."""
        return [output] if self.named else [_split_folder(output, entry) for entry in self.entries]


def choose_suite(
    datasets: str | Sequence[str],
    splits: str | Sequence[str] = (),
    root: str | Path | None = None,
    **options: Unpack[DataOptions],
) -> Suite:
    """Choose the splits to evaluate.

    Args:
        datasets: Names of data sets; "all" is every benchmark under `root`; those with a `path` are named alone.
        splits: Names of splits; none for every split that is not for training. Under "all", a data set that lacks one
            of them is evaluated on the others.
        root: The folder that holds the data sets' folders; custom data has a `path` in its place.
        options: As in `read_dataset`. `images` is the folder of COCO's images if there are several data sets;
            `split_by` is for a single data set; `limit` is for each split.

    Raises:
        DataError: Nothing to evaluate; options that do not fit the data sets; files that are missing or malformed.
    """
    datasets, splits = ([value] if isinstance(value, str) else list(value) for value in (datasets, splits))
    if with_path := [name for name in datasets if name in DATASETS and "path" in DATASETS[name].needs]:
        if len(datasets) > 1 or len(splits) > 1:
            raise DataError(f"{min(with_path)} is evaluated alone; name one data set and at most one split")
        split = splits[0] if splits else None
        return Suite((data_entry(datasets[0], root=root, split=split, **options),), named=True)
    names = ", ".join(datasets)
    if root is None:
        raise ArgumentError("root", f"is missing; {names} needs the folder that holds the data sets' folders")
    for key in ("path", "phrases", "columns"):
        if options.get(key) is not None:
            raise ArgumentError(key, f"has no meaning for {names}; give root and split")
    return _choose_benchmarks(datasets, splits, Path(root), options)


def is_comparable(entry: DataEntry, samples: Sequence[Sample], protocol: str | None = None) -> bool:
    """Return whether published results are on the same sentences under the same protocol.

    True for a complete split of real data with the usual split file, scored under the data set's own protocol, if it
    has the benchmark's numbers of sentences and images.
    """
    if entry.row.published is None or entry.root is None or protocol not in (None, entry.row.protocol):
        return False
    usual = entry.limit is None and entry.split_by in (None, entry.row.split_by)
    images = len({sample.image for sample in samples})
    same_size = has_benchmark_size(entry.row.published, entry.split_name, len(samples), images)
    return usual and same_size and not is_generated(entry.root)


def check_some_image(entry: DataEntry, images: Iterable[ImageSource]) -> None:
    """Check that an image of a split exists, before a model is loaded, because predictions take hours.

    Raises:
        DataError: None of them exists.
    """
    paths = dict.fromkeys(images)
    if not any(not isinstance(path, Path) or file_exists(path) for path in paths):
        raise DataError(
            f"{entry.name}: none of its {len(paths)} images exists (the first would be "
            f"{next(iter(paths))}); give their folder with --images"
        )


def home_of(model: str | Path) -> Path:
    """Return the folder that results go to by default: the run folder, or one in runs/ with the model's name."""
    return Path(model) if Path(model).is_dir() else Path("runs") / Path(model).name


def _choose_benchmarks(datasets: Sequence[str], splits: Sequence[str], root: Path, options: DataOptions) -> Suite:
    images, split_by, limit = options.get("images"), options.get("split_by"), options.get("limit")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; root must be the folder that holds the data sets' folders")
    everything = ALL in datasets
    names = benchmarks_in(root) if everything else list(dict.fromkeys(datasets))
    if not names:
        raise DataError(f"{root}: holds no data set to evaluate ({', '.join(dataset_names('benchmark'))})")
    several = everything or len(names) > 1
    if split_by is not None and several:
        raise ArgumentError(
            "split_by", f"{split_by!r} is the split file of one data set; name a single data set with it"
        )
    entries = []
    for name in names:
        chosen = list(dict.fromkeys(splits))
        if everything or not chosen:
            held = held_out_splits(name, root, split_by)
            chosen = [split for split in chosen if split in held] if chosen else held
        # With several data sets, `images` is the folder of COCO's images, and is not for ReasonSeg.
        folder = images if dataset_row(name).coco_images or not several else None
        entries += [
            data_entry(name, root=root, split=split, images=folder, split_by=split_by, limit=limit) for split in chosen
        ]
    if not entries:
        raise DataError(f"{root}: no data set there has the split {' or '.join(splits)}")
    return Suite(tuple(entries), named=not several and len(set(splits)) == 1)


def _split_folder(home: Path, entry: DataEntry) -> Path:
    return home / f"{entry.dataset}-{entry.split_name}"
