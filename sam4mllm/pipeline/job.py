"""A batch job: queries packed into shards, in a folder that records which shards are done.

    DIR/job.json              the digest of the queries and the identity of the pipeline; a folder belongs to one job
    DIR/shards/00000.jsonl    completed shards, written atomically
    DIR/images/00000.json     the versions of the images of a shard, which is computed again if one was replaced
    DIR/predictions.jsonl     all shards, written when the last one is done

Queries about one image are in one shard, so an image is read and embedded once. Shards hold confidences, and scores
without calibration, so a calibration that is fitted later changes predictions.jsonl alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam4mllm.data.image_sources import ImageSource
from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.predictions import (
    Confidence,
    PredictionLine,
    Query,
    is_cut_off,
    prediction_from_json,
)
from sam4mllm.errors import DataError
from sam4mllm.pipeline.image_files import ImageVersion
from sam4mllm.runs.calibration import Calibration, scores_of
from sam4mllm.runs.file_names import JOB, PREDICTIONS
from sam4mllm.utils.atomic_io import atomic_path, atomic_write_text

logger = logging.getLogger(__name__)

SHARD_SIZE = 64
"""The minimum number of queries of a shard; a killed run repeats at most one shard per process, and one that was being
written."""


@dataclass(frozen=True, slots=True)
class Job:
    """Queries packed into shards, and the folder of their predictions."""

    output: Path
    shards: tuple[tuple[Query, ...], ...]

    @classmethod
    def open(
        cls, identity: Mapping[str, Any], queries: Sequence[Query], output: Path, shard_size: int = SHARD_SIZE
    ) -> Job:
        """Open or create the job that answers `queries` by a pipeline of this identity.

        Raises:
            DataError: The folder belongs to another job.
        """
        shards = pack_shards(queries, shard_size)
        digest = hashlib.sha256()
        for shard in shards:
            for query in shard:
                digest.update(dump_line(query).encode())
        content = {
            "queries": digest.hexdigest(),
            "shards": [len(shard) for shard in shards],
            **identity,
        }
        file = output / JOB
        for folder in ("shards", "images"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        if file.is_file():
            existing = json.loads(file.read_text(encoding="utf-8"))
            different = sorted(key for key in content.keys() | existing.keys() if content.get(key) != existing.get(key))
            if different:
                raise DataError(
                    f"{output}: contains another job's predictions (different: {', '.join(different)}); choose another "
                    "--output, or remove the folder"
                )
        else:
            atomic_write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return cls(output, shards)

    def shard_file(self, index: int) -> Path:
        """Return the file of shard `index`."""
        return self.output / "shards" / f"{index:05d}.jsonl"

    def write_shard(self, index: int, lines: Sequence[str], images: Mapping[str, ImageVersion]) -> None:
        """Write the lines of a shard, and before them the versions of its images by their paths in the queries."""
        versions = {image: version.to_json() for image, version in images.items()}
        atomic_write_text(self._versions_file(index), json.dumps(versions, indent=1, sort_keys=True) + "\n")
        atomic_write_text(self.shard_file(index), "".join(lines))

    def pending(self) -> list[int]:
        """Return the shards to compute: those without a file, with errors, or with an image that was replaced.

        The images of queries with errors may be fixed now.
        """
        pending, replaced = [], []
        for index in range(len(self.shards)):
            if not self._is_done(index):
                pending.append(index)
            elif (image := self._replaced_image(index)) is not None:
                pending.append(index)
                replaced.append(image)
        if replaced:
            logger.warning(
                "%s: the images of %d shard(s) were replaced since they were answered, and are answered again; the "
                "first one is %s",
                self.output,
                len(replaced),
                replaced[0],
            )
        return pending

    def _replaced_image(self, index: int) -> str | None:
        """Return the first image of a shard that was replaced; None also if the versions were not recorded."""
        file = self._versions_file(index)
        if not file.is_file():
            return None
        recorded = json.loads(file.read_text(encoding="utf-8"))
        versions = ((image, ImageVersion.from_json(value)) for image, value in recorded.items())
        return next((image for image, version in versions if version.was_replaced(Path(image))), None)

    def _versions_file(self, index: int) -> Path:
        return self.output / "images" / f"{index:05d}.json"

    def _is_done(self, index: int) -> bool:
        file = self.shard_file(index)
        if not file.is_file():
            return False
        with file.open(encoding="utf-8") as lines:
            return all(json.loads(line)["status"] != "error" for line in lines)

    @property
    def predictions(self) -> Path:
        """The file of all predictions."""
        return self.output / PREDICTIONS

    def merge(self, calibration: Calibration | None = None) -> dict[str, int]:
        """Write all shards as one file, in their order, and return how many lines it has of each status.

        The count "cut_off" is that of the malformed answers that the limit of tokens cut off.

        With a calibration, the scores are recomputed from the confidences in the lines.
        """
        counts = {"ok": 0, "no_object": 0, "malformed": 0, "error": 0, "cut_off": 0}
        with atomic_path(self.predictions) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            for index in range(len(self.shards)):
                with self.shard_file(index).open(encoding="utf-8") as lines:
                    for line in lines:
                        record = json.loads(line)
                        counts[record["status"]] += 1
                        counts["cut_off"] += is_cut_off(record["status"], record.get("error"))
                        out.write(line if calibration is None else dump_line(rescored(record, calibration)))
        return counts


def rescored(record: object, calibration: Calibration) -> PredictionLine:
    """Return the prediction of a line's JSON with the scores that `calibration` computes from its confidences."""
    line = prediction_from_json(record)
    confidences = [item.confidence or Confidence() for item in line.objects] if line.status == "ok" else []
    if line.confidence is not None:
        confidences = [line.confidence]
    scores, score = scores_of(line.status, confidences, calibration)
    objects = [replace(item, score=round(each, 4)) for item, each in zip(line.objects, scores, strict=True)]
    return replace(line, objects=tuple(objects), score=None if score is None else round(score, 4))


def group_by_image(queries: Sequence[Query]) -> list[list[Query]]:
    """Group queries by image, in the order of each image's first query."""
    groups: dict[ImageSource, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.image, []).append(query)
    return list(groups.values())


def pack_shards(queries: Sequence[Query], size: int) -> tuple[tuple[Query, ...], ...]:
    """Pack queries into shards of `size` or a few more, with all queries of an image in one shard.

    Raises:
        ValueError: A size below 1.
    """
    if size < 1:
        raise ValueError(f"a shard holds at least one query; got {size}")
    shards: list[list[Query]] = []
    for group in group_by_image(queries):
        if not shards or len(shards[-1]) >= size:
            shards.append([])
        shards[-1] += group
    return tuple(tuple(shard) for shard in shards)
