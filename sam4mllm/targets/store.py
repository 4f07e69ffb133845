"""TargetStore: the training targets of a data set, as Parquet shards in a folder named by a hash of their key.

    ROOT/{hash}/key.json                  data, segmenter and settings that the targets depend on
    ROOT/{hash}/targets-00000.parquet     a shard: a target, or the reason for skipping it, per object id

Shards are written atomically, so an existing file is complete and a job can resume. Other data, another segmenter or
other settings have another key, hence another folder: outdated targets are never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.utils.atomic_io import atomic_path, atomic_write_text

FORMAT = 2
"""The version of the file format and of the computation; with a new number all stores are computed again."""


@dataclass(frozen=True, slots=True)
class ObjectTarget:
    """The training target of one object.

    Attributes:
        object_id: The id of the object.
        object_hash: See `objects.object_hash`; the results of objects with equal hashes differ in their ids only.
        prompts: The true box with each chosen group of points, the best group first.
        ious: IoU of SAM's mask with the true mask for each prompt, as it was scored.
        box_iou: The same for the box without points.
        mean_iou: The mean over all sampled groups.
        std_iou: The population standard deviation over all sampled groups.
    """

    object_id: str
    object_hash: str
    prompts: tuple[SamPrompt, ...]
    ious: tuple[float, ...]
    box_iou: float
    mean_iou: float
    std_iou: float

    @property
    def points_beat_box(self) -> bool:
        """Whether a kept group has a higher IoU than the box without points; an equal IoU does not count."""
        return any(iou > self.box_iou for iou in self.ious)


@dataclass(frozen=True, slots=True)
class SkippedObject:
    """An object without a training target, and the reason."""

    object_id: str
    object_hash: str
    reason: str


class TargetStore:
    """The targets of one data set for one segmenter and one set of settings; use `open` to create or open one.

    Attributes:
        path: The folder of the store.
        key: What the targets depend on; its hash is the folder's name.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path = path
        self.key = dict(key)

    @classmethod
    def open(cls, root: Path, key: Mapping[str, Any]) -> TargetStore:
        """Open the store of `key` (plain JSON values) under `root`; create it if it does not exist.

        Raises:
            DataError: The folder holds another key, or cannot be created or read.
        """
        text = json.dumps({"format": FORMAT, **key}, indent=2, sort_keys=True)
        path = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        file = path / "key.json"
        try:
            if not file.is_file():
                path.mkdir(parents=True, exist_ok=True)
                atomic_write_text(file, text)
            stored = file.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot use {path} as a target store: {error}") from error
        if stored != text:
            raise DataError(f"{file} is not the key of this store; delete the folder {path} to compute it again")
        return cls(path, key)

    def shards(self) -> list[int]:
        """Return the numbers of the existing shards in ascending order."""
        return sorted(int(file.stem.removeprefix("targets-")) for file in self.path.glob("targets-*.parquet"))

    def write_shard(self, number: int, results: Sequence[ObjectTarget | SkippedObject]) -> None:
        """Write shard `number` atomically."""
        from datasets import Features, List, Value
        from pyarrow import Table, parquet

        features = Features(
            {
                "object_id": Value("string"),
                "object_hash": Value("string"),
                "reason": Value("string"),
                "box_xyxy": List(Value("float64")),
                "points_xy": List(List(List(Value("float32")))),
                "point_labels": List(List(Value("int8"))),
                "ious": List(Value("float32")),
                "box_iou": Value("float32"),
                "mean_iou": Value("float32"),
                "std_iou": Value("float32"),
            }
        )
        table = Table.from_pylist([_row(result) for result in results], schema=features.arrow_schema)
        with atomic_path(self.path / f"targets-{number:05d}.parquet") as unfinished:
            parquet.write_table(table, unfinished)

    def results(self) -> Iterable[ObjectTarget | SkippedObject]:
        """Iterate over all object ids of the store, shard by shard.

        Raises:
            DataError: A shard cannot be read.
        """
        import pyarrow
        from pyarrow import parquet

        for number in self.shards():
            file = self.path / f"targets-{number:05d}.parquet"
            try:
                rows = parquet.read_table(file).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{file} cannot be read ({error}); delete it to compute it again") from error
            yield from map(_result, rows)

    def read(self) -> dict[str, ObjectTarget]:
        """Read the targets, by object id."""
        return {result.object_id: result for result in self.results() if isinstance(result, ObjectTarget)}

    def skipped(self) -> dict[str, str]:
        """Read the reasons of the objects without a target, by object id."""
        return {result.object_id: result.reason for result in self.results() if isinstance(result, SkippedObject)}

    def missing(self, object_ids: Iterable[str]) -> list[str]:
        """Return the ids with neither a target nor a reason in the store, in their order."""
        known = {result.object_id for result in self.results()}
        return [object_id for object_id in object_ids if object_id not in known]


def _row(result: ObjectTarget | SkippedObject) -> dict[str, Any]:
    row: dict[str, Any] = {
        "object_id": result.object_id,
        "object_hash": result.object_hash,
        "reason": None,
        "box_xyxy": None,
        "points_xy": None,
        "point_labels": None,
        "ious": None,
        "box_iou": None,
        "mean_iou": None,
        "std_iou": None,
    }
    if isinstance(result, SkippedObject):
        return row | {"reason": result.reason}
    box = result.prompts[0].box
    return row | {
        "box_xyxy": None if box is None else list(box),
        "points_xy": [[[point.x, point.y] for point in prompt.points] for prompt in result.prompts],
        "point_labels": [[point.label for point in prompt.points] for prompt in result.prompts],
        "ious": list(result.ious),
        "box_iou": result.box_iou,
        "mean_iou": result.mean_iou,
        "std_iou": result.std_iou,
    }


def _result(row: Mapping[str, Any]) -> ObjectTarget | SkippedObject:
    if row["reason"] is not None:
        return SkippedObject(row["object_id"], row["object_hash"], row["reason"])
    box = Box(*row["box_xyxy"])
    prompts = tuple(
        SamPrompt(box, tuple(Point(x, y, label) for (x, y), label in zip(points, labels, strict=True)))
        for points, labels in zip(row["points_xy"], row["point_labels"], strict=True)
    )
    return ObjectTarget(
        row["object_id"],
        row["object_hash"],
        prompts,
        tuple(row["ious"]),
        row["box_iou"],
        row["mean_iou"],
        row["std_iou"],
    )
