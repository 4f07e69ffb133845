"""Which data sets and splits a root holds: what can be evaluated there, by the files. This module reads no sample."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.data.readers.reasonseg import FOLDER, images_by_split
from sam4mllm.data.registry import DATASETS, refs_of
from sam4mllm.errors import DataError

BENCHMARKS = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg")
"""The data sets that papers report on, in their order."""
_TRAIN = "train"
_USUAL = ("val", "testA", "testB", "test")


def held_benchmarks(root: Path) -> list[str]:
    """The benchmarks that have a folder under `root`, in their usual order."""
    return [name for name in BENCHMARKS if _folder(name, root).is_dir()]


def held_out_splits(name: str, root: Path, split_by: str | None = None) -> list[str]:
    """The splits of a data set under `root` that are not for training: val, testA, testB, test, then any others.

    Raises:
        DataError: an unknown data set; a file that is missing or not what it promises; no split but for training.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; the known ones are: {', '.join(DATASETS)}")
    if DATASETS[name].format == "reasonseg":
        where, splits = _folder(name, root), set(images_by_split(root))
    else:
        where, refs = refs_of(name, root, split_by)
        splits = {ref.split for ref in refs}
    found = splits - {_TRAIN}
    if not found:
        raise DataError(f"{where}: holds no split to evaluate on, only what is for training; name one with --split")
    return [split for split in _USUAL if split in found] + sorted(found.difference(_USUAL))


def _folder(name: str, root: Path) -> Path:
    return root / (FOLDER if DATASETS[name].format == "reasonseg" else DATASETS[name].name)
