"""The batch run: many queries to DIR/predictions.jsonl, killed anywhere and taken up again, to the same bytes.

    DIR/job.json              what is asked of what; a folder belongs to one job
    DIR/shards/00000.jsonl    whole shards: a file that is there is complete
    DIR/predictions.jsonl     all shards, written when the last one is done

Queries of one image stand in one shard, so an image is read and embedded once. An image that cannot be read and a
query that cannot be answered give lines of status "error", and the rest goes on; a later run asks those shards again.
Several processes share the shards out among them; what is in one does not depend on who computed it. Shards hold
evidence, and scores without calibration, so that a calibration which comes later changes predictions.jsonl alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sam4mllm.data.images import Rgb, load_image
from sam4mllm.data.predictions import PredictionLine, Query, dump_line
from sam4mllm.errors import DataError, Sam4mllmError, ServerError
from sam4mllm.pipeline.lines import line_of, rescored
from sam4mllm.pipeline.pipeline import Pipeline, batched
from sam4mllm.pipeline.result import Result
from sam4mllm.runs.calibration import Calibration
from sam4mllm.utils.atomic_io import atomic_path, atomic_write_text
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import Advance, ignore

SHARD_SIZE = 64
"""Queries of a shard, at least: what a killed run may have to do again."""

_ENDS_THE_RUN = (torch.OutOfMemoryError, MemoryError, ServerError)
"""What no image is to blame for."""

_Asked = tuple[Rgb, Sequence[Query]]
"""An image and the queries about it."""


class Responder(Protocol):
    """What answers queries: a `Pipeline`, or what stands in for one.

    `identity` names all that decides its results; `image_batch` is how many images it is given at once.
    """

    image_batch: int

    @property
    def identity(self) -> dict[str, Any]: ...

    def respond(self, images: Sequence[Rgb], asked: Sequence[tuple[int, Query]]) -> list[Result]:
        """The results of (index of the image, query) pairs, in their order; it raises what it cannot answer."""
        ...


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """How a batch run ended: the file of predictions, and how many lines it has of each status."""

    predictions: Path
    ok: int
    no_object: int
    malformed: int
    error: int

    @property
    def total(self) -> int:
        return self.ok + self.no_object + self.malformed + self.error

    def to_json(self) -> dict[str, Any]:
        return {
            "predictions": str(self.predictions),
            "total": self.total,
            "ok": self.ok,
            "no_object": self.no_object,
            "malformed": self.malformed,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Job:
    """Queries packed into shards, in a folder that holds what is done of them.

    Raises:
        DataError: (`open`) the folder belongs to another job.
    """

    output: Path
    shards: tuple[tuple[Query, ...], ...]

    @classmethod
    def open(cls, pipeline: Responder, queries: Sequence[Query], output: Path, shard_size: int = SHARD_SIZE) -> Job:
        """The job of asking `queries` of `pipeline` in the folder `output`, new or taken up again."""
        shards = _pack(queries, shard_size)
        text = "".join(dump_line(query) for shard in shards for query in shard)
        about = {
            "queries": hashlib.sha256(text.encode()).hexdigest(),
            "shards": [len(shard) for shard in shards],
            **pipeline.identity,
        }
        place = output / "job.json"
        (output / "shards").mkdir(parents=True, exist_ok=True)
        if place.is_file():
            found = json.loads(place.read_text(encoding="utf-8"))
            differing = sorted(key for key in about.keys() | found.keys() if about.get(key) != found.get(key))
            if differing:
                raise DataError(
                    f"{output}: holds another job's predictions (different: {', '.join(differing)}); choose another "
                    "--output, or remove the folder"
                )
        else:
            atomic_write_text(place, json.dumps(about, indent=2, sort_keys=True) + "\n")
        return cls(output, shards)

    def place(self, index: int) -> Path:
        """Where shard `index` is when it is done."""
        return self.output / "shards" / f"{index:05d}.jsonl"

    def done(self, index: int) -> bool:
        """Whether shard `index` is there, with no line that an image which has been mended since could change."""
        place = self.place(index)
        if not place.is_file():
            return False
        with place.open(encoding="utf-8") as lines:
            return all(json.loads(line)["status"] != "error" for line in lines)

    def pending(self) -> list[int]:
        """The shards that are not done."""
        return [index for index in range(len(self.shards)) if not self.done(index)]

    @property
    def merged(self) -> Path:
        """The file of all predictions."""
        return self.output / "predictions.jsonl"

    def merge(self, calibration: Calibration | None = None) -> dict[str, int]:
        """Writes all shards as one file, in the shards' order; returns how many lines it has of each status.

        With a calibration the scores are those that it makes of the evidence in the lines, so a new one asks nothing
        anew.
        """
        statuses = {"ok": 0, "no_object": 0, "malformed": 0, "error": 0}
        with atomic_path(self.merged) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            for index in range(len(self.shards)):
                with self.place(index).open(encoding="utf-8") as lines:
                    for line in lines:
                        record = json.loads(line)
                        statuses[record["status"]] += 1
                        out.write(line if calibration is None else dump_line(rescored(record, calibration)))
        return statuses


def predict(
    pipeline: Responder,
    queries: Sequence[Query],
    output: Path,
    *,
    shard_size: int = SHARD_SIZE,
    advance: Advance = ignore,
    processes: DistributedContext = SINGLE_PROCESS,
) -> BatchSummary:
    """Answer all queries into `output`; shards that an earlier run left there are not computed again.

    `advance` is told of the queries done, those of earlier runs at once; of several processes only the main one's.

    Raises:
        DataError: `output` holds the predictions of other queries or another model.
    """
    calibration = None
    if isinstance(pipeline, Pipeline) and pipeline.calibration is not None:
        calibration, pipeline = pipeline.calibration, pipeline.uncalibrated()
    if processes.is_main:
        Job.open(pipeline, queries, output, shard_size)
    processes.wait()
    job = Job.open(pipeline, queries, output, shard_size)
    pending = processes.broadcast_result(job.pending)
    if processes.is_main:
        advance(len(queries) - sum(len(job.shards[index]) for index in pending))
    advance = processes.aggregate_progress(advance)
    for index in processes.distribute(pending):
        lines: list[str] = []
        groups = list(_by_image(job.shards[index]).values())
        for batch in batched(groups, pipeline.image_batch):
            lines += [dump_line(line) for line in _answer(pipeline, batch)]
            advance(sum(len(group) for group in batch))
        atomic_write_text(job.place(index), "".join(lines))
    processes.wait()
    advance(0)
    return BatchSummary(job.merged, **processes.broadcast_result(lambda: job.merge(calibration)))


def _answer(pipeline: Responder, groups: Sequence[Sequence[Query]]) -> list[PredictionLine]:
    """The lines of some images' queries, in their order. What is wrong with one of them spoils its own line alone."""
    lines: dict[int, list[PredictionLine]] = {}
    images: dict[int, Rgb] = {}
    for owner, group in enumerate(groups):
        try:
            images[owner] = load_image(group[0].image)
        except DataError as error:
            lines[owner] = [_error_line(query, str(error)) for query in group]
    answered = _answer_apart(pipeline, [(image, groups[owner]) for owner, image in images.items()])
    lines |= zip(images, answered, strict=True)
    return [line for owner in range(len(groups)) for line in lines[owner]]


def _answer_apart(pipeline: Responder, asked: Sequence[_Asked]) -> list[list[PredictionLine]]:
    """The lines of each image's queries.

    Something may not be to the model's liking: an image (a side of one pixel, say) or a phrase (with the model's sign
    for images in it). To find out which, the images are asked about one by one, then the queries of an image.
    """
    try:
        return _answer_together(pipeline, asked)
    except _ENDS_THE_RUN:
        raise
    except Exception as error:
        if len(asked) > 1:
            return [lines for one in asked for lines in _answer_apart(pipeline, [one])]
        ((image, queries),) = asked
        if len(queries) > 1:
            return [[line for query in queries for (line,) in _answer_apart(pipeline, [(image, [query])])]]
        message = str(error) if isinstance(error, Sam4mllmError) else f"{type(error).__name__}: {error}"
        return [[_error_line(queries[0], message)]]


def _answer_together(pipeline: Responder, asked: Sequence[_Asked]) -> list[list[PredictionLine]]:
    pairs = [(place, query) for place, (_, queries) in enumerate(asked) for query in queries]
    results = pipeline.respond([image for image, _ in asked], pairs) if pairs else []
    lines: list[list[PredictionLine]] = [[] for _ in asked]
    for (place, query), result in zip(pairs, results, strict=True):
        lines[place].append(line_of(query, result))
    return lines


def _error_line(query: Query, message: str) -> PredictionLine:
    return PredictionLine(id=query.id, status="error", image=query.image, phrase=query.phrase, error=message)


def _by_image(queries: Sequence[Query]) -> dict[Path, list[Query]]:
    groups: dict[Path, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.image, []).append(query)
    return groups


def _pack(queries: Sequence[Query], size: int) -> tuple[tuple[Query, ...], ...]:
    """Shards of `size` queries or a few more, images in the order of their first query, no image in two shards.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"a shard holds at least one query; got {size}")
    shards: list[list[Query]] = []
    for group in _by_image(queries).values():
        if not shards or len(shards[-1]) >= size:
            shards.append([])
        shards[-1] += group
    return tuple(tuple(shard) for shard in shards)
