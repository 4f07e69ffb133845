"""Batch prediction: answer many queries into DIR/predictions.jsonl; a killed run resumes and gives the same bytes.

Queries about an unreadable image, and queries that cannot be answered, get the status "error"; all others are answered.
A later run repeats the shards with errors. Several processes share the shards; the content of a shard does not depend
on which process computes it. `job.py` describes the files.

Worker threads decode the next images while the model answers, and a shard is written while the next one is answered;
neither changes a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sam4mllm.data.images import Rgb
from sam4mllm.data.json_lines import JsonRecord, dump_line
from sam4mllm.data.predictions import Query
from sam4mllm.errors import Sam4mllmError, ServerError
from sam4mllm.pipeline.image_files import ImageVersion, ReadAhead
from sam4mllm.pipeline.job import SHARD_SIZE, Job, group_by_image
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.runs.calibration import Calibration
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.memory import DeviceBatch, is_out_of_memory, release_memory
from sam4mllm.utils.progress import Advance, ignore

_ImageQueries = tuple[Rgb, Sequence[Query]]
"""An image and the queries about it."""


class Answered(Protocol):
    """The answer to a query: a `Result`, or a text."""

    def line(self, query: Query) -> JsonRecord:
        """Return the line of predictions.jsonl for the query that this answers."""
        ...


class Predictor(Protocol):
    """An object that answers queries: a `Pipeline`, a baseline that computes masks in another way, or one that answers
    in text.
    """

    image_batch: int
    """The number of images in one call."""

    @property
    def identity(self) -> dict[str, Any]:
        """All models and settings that the results depend on, as plain JSON."""
        ...

    def answer_queries(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> Sequence[Answered]:
        """Return the results of (index of the image, query) pairs, in their order.

        An exception of any class makes the queries be answered one by one; those that fail get error lines. Where
        memory runs out, the images of later calls are fewer.
        """
        ...


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """The file of predictions, and how many lines it has of each status.

    `cut_off` counts the malformed answers that the limit of tokens cut off.
    """

    predictions: Path
    ok: int
    no_object: int
    malformed: int
    error: int
    cut_off: int = 0

    @property
    def total(self) -> int:
        """The number of lines."""
        return sum(self.statuses.values())

    @property
    def statuses(self) -> dict[str, int]:
        """The number of lines of each status."""
        return {"ok": self.ok, "no_object": self.no_object, "malformed": self.malformed, "error": self.error}

    def to_json(self) -> dict[str, Any]:
        """Return what `predict --json` writes."""
        return {
            "predictions": str(self.predictions),
            "total": self.total,
            "ok": self.ok,
            "no_object": self.no_object,
            "malformed": self.malformed,
            "cut_off": self.cut_off,
            "error": self.error,
        }


def predict(
    pipeline: Predictor,
    queries: Sequence[Query],
    output: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    advance: Advance = ignore,
    processes: DistributedContext = SINGLE_PROCESS,
) -> BatchSummary:
    """Answer all queries into the folder `output`; shards that an earlier run completed are not computed again.

    Args:
        pipeline: The pipeline or baseline that answers the queries.
        queries: The queries, in any order; ids are not checked.
        output: The folder of the job.
        shard_size: The minimum number of queries of a shard.
        advance: Called with the number of finished queries, first with those of earlier runs; only in the main process.
        processes: The processes that share the shards.

    Raises:
        DataError: `output` contains the predictions of other queries or of another model.
        DeviceMemoryError: Memory does not suffice for one query; completed shards are kept.
        LaunchError: Another job writes to `output`.
    """
    output = Path(output)
    with folder_lock(output, "predicting", subfolders=("shards", "images"), active=processes.is_main):
        return _predict(pipeline, queries, output, shard_size, advance, processes)


def _predict(
    pipeline: Predictor,
    queries: Sequence[Query],
    output: Path,
    shard_size: int,
    advance: Advance,
    processes: DistributedContext,
) -> BatchSummary:
    """Answer all queries into the locked folder `output`; see `predict`."""
    # 1. Shards hold scores without calibration, which is applied when they are merged. Votes need it earlier.
    pipeline, calibration = calibrated_later(pipeline)

    # 2. The main process creates the job before the others open it, and all agree on what is to be done.
    if processes.is_main:
        Job.open(pipeline.identity, queries, output, shard_size)
    processes.barrier()
    job = Job.open(pipeline.identity, queries, output, shard_size)
    pending = processes.broadcast_result(job.pending)
    if processes.is_main:
        advance(len(queries) - sum(len(job.shards[index]) for index in pending))
    advance = processes.aggregate_progress(advance)

    # 3. Each process computes the next shard that no other has taken.
    _write_answers(pipeline, job, processes.distribute(pending), advance)

    # 4. The main process merges the shards when all of them exist.
    processes.barrier()
    advance(0)
    return BatchSummary(job.predictions, **processes.broadcast_result(lambda: job.merge(calibration)))


def calibrated_later(pipeline: Predictor) -> tuple[Predictor, Calibration | None]:
    """Return the predictor that answers shards, and the calibration that is applied when they are merged, if any."""
    if isinstance(pipeline, Pipeline) and pipeline.calibration is not None and pipeline.votes is None:
        return pipeline.uncalibrated(), pipeline.calibration
    return pipeline, None


def _write_answers(pipeline: Predictor, job: Job, shards: Iterator[int], advance: Advance) -> None:
    """Answer and write shards; at most two shards of lines are in memory."""
    with ThreadPoolExecutor(1, "write-behind") as writer:
        written: Future[None] | None = None
        for shard in answer_shards(pipeline, ((index, job.shards[index]) for index in shards), advance):
            # An error of the previous write is raised here, before another shard is written.
            if written is not None:
                written.result()
            written = writer.submit(job.write_shard, shard.index, shard.lines, shard.images)
        if written is not None:
            written.result()


@dataclass(frozen=True, slots=True)
class AnsweredShard:
    """The lines of a shard, in the order of `group_by_image`, and the versions of its images that could be opened."""

    index: int
    lines: list[str]
    images: dict[str, ImageVersion]


def answer_shards(
    pipeline: Predictor, shards: Iterable[tuple[int, Sequence[Query]]], advance: Advance = ignore
) -> Iterator[AnsweredShard]:
    """Answer shards, given as index and queries; at most two batches of images are in memory.

    Raises:
        DeviceMemoryError: Memory does not suffice for one query.
    """
    at_once = DeviceBatch(pipeline.image_batch, "images", "free memory on the device, or use smaller models or images")
    with ReadAhead(pipeline.image_batch) as ahead:
        for index, queries in _add_images(shards, ahead):
            lines: list[str] = []
            versions: dict[str, ImageVersion] = {}
            for answered in at_once.map(group_by_image(queries), partial(_answer_groups, pipeline, ahead)):
                lines += map(dump_line, answered.lines)
                versions |= answered.versions
                ahead.drop(answered.images)
                advance(len(answered.lines))
            yield AnsweredShard(index, lines, versions)


def _add_images(
    shards: Iterable[tuple[int, Sequence[Query]]], ahead: ReadAhead
) -> Iterator[tuple[int, Sequence[Query]]]:
    """Yield the shards, after the images of each and of the one behind it are added to `ahead`.

    A process takes no more than one shard ahead, however few images a shard has: other processes may be free for them.
    """
    previous: tuple[int, Sequence[Query]] | None = None
    for shard in shards:
        ahead.add(group[0].image for group in group_by_image(shard[1]))
        if previous is not None:
            yield previous
        previous = shard
    if previous is not None:
        yield previous


@dataclass(frozen=True, slots=True)
class _AnsweredImages:
    """The lines about some images, in the order of the queries, and the versions of the files that exist."""

    images: int
    lines: list[JsonRecord]
    versions: dict[str, ImageVersion]


def _answer_groups(pipeline: Predictor, ahead: ReadAhead, groups: Sequence[Sequence[Query]]) -> _AnsweredImages:
    """Answer the queries about the next images of `ahead`; unreadable images get error lines."""
    decoded = ahead.first(len(groups))
    lines: dict[int, list[JsonRecord]] = {}
    images: dict[int, Rgb] = {}
    for index, (image, group) in enumerate(zip(decoded, groups, strict=True)):
        if image.pixels is None:
            lines[index] = [query.failed(image.error or "") for query in group]
        else:
            images[index] = image.pixels
    answered = _answer_isolated(pipeline, [(pixels, groups[index]) for index, pixels in images.items()])
    lines |= zip(images, answered, strict=True)
    return _AnsweredImages(
        len(groups),
        [line for index in range(len(groups)) for line in lines[index]],
        {str(image.path): image.version for image in decoded if image.version is not None},
    )


def _answer_isolated(pipeline: Predictor, groups: Sequence[_ImageQueries]) -> list[list[JsonRecord]]:
    """Return the lines of each image's queries; a query that cannot be answered gets an error line.

    A model may fail on an image (with a side of one pixel, for example) or on a phrase (which contains its image
    token). To isolate the query that fails, the images of a failed batch are answered one by one, then the queries of
    an image. No single image or phrase causes the failure of a server, or too little memory for several images.
    """
    try:
        return _answer(pipeline, groups)
    except ServerError:
        raise
    except Exception as error:
        if (out_of_memory := is_out_of_memory(error)) and (len(groups) > 1 or len(groups[0][1]) == 1):
            raise
        message = str(error) if isinstance(error, Sam4mllmError) else f"{type(error).__name__}: {error}"
    if out_of_memory:
        release_memory()
    if len(groups) > 1:
        return [lines for group in groups for lines in _answer_isolated(pipeline, [group])]
    ((image, queries),) = groups
    if len(queries) > 1:
        return [[line for query in queries for (line,) in _answer_isolated(pipeline, [(image, [query])])]]
    return [[queries[0].failed(message)]]


def _answer(pipeline: Predictor, groups: Sequence[_ImageQueries]) -> list[list[JsonRecord]]:
    pairs = [(index, query) for index, (_, queries) in enumerate(groups) for query in queries]
    results = pipeline.answer_queries([image for image, _ in groups], pairs) if pairs else []
    lines: list[list[JsonRecord]] = [[] for _ in groups]
    for (index, query), result in zip(pairs, results, strict=True):
        lines[index].append(result.line(query))
    return lines
