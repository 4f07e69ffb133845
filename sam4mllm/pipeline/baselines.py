"""Baselines that show what the points add: masks from the boxes alone of a run's predictions.jsonl.

`box` prompts SAM with the boxes of the answers and no points; `filled-box` uses the filled boxes as masks. The
model is not asked again. An answer that is "no object", malformed or an error is the same in the baseline.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sam4mllm.data.images import Rgb
from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine, Query
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, SamPrompt, mask_of_box
from sam4mllm.methods.base import Answer
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result
from sam4mllm.runs.file_names import JOB, PREDICTIONS
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import Advance, ignore

BOX = "box"
FILLED_BOX = "filled-box"
BASELINES = (BOX, FILLED_BOX)


class BoxPredictor:
    """A `batch.Predictor` that prompts SAM with the boxes of existing answers, without their points.

    Args:
        pipeline: The pipeline whose segmenter is used.
        answers: The run's predictions; their masks are not kept.

    Raises:
        DataError: An answer with an object that has points and no box.
    """

    def __init__(self, pipeline: Pipeline, answers: Iterable[PredictionLine]) -> None:
        self._pipeline = pipeline
        self._answers: dict[str, PredictionLine] = {}
        self._boxes: dict[str, list[Box]] = {}
        for line in answers:
            self._answers[line.id] = replace(line, objects=())
            self._boxes[line.id] = [_box(item, line) for item in line.objects]
        self.image_batch = pipeline.image_batch
        self.identity: dict[str, Any] = {
            "baseline": BOX,
            "answers": self._digest(),
            "segmenter": pipeline.segmenter.fingerprint,
        }

    def answer_queries(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[Result]:
        """Return the results of (index of the image, query) pairs, in their order.

        Raises:
            DataError: A query with the status "error", whose answer has no box.
        """
        answers = [self._answer(self._answers[query.id]) for _, query in queries]
        with torch.no_grad():
            return self._pipeline.segment(images, [index for index, _ in queries], answers)

    def _answer(self, line: PredictionLine) -> Answer:
        if line.status == "error":
            raise DataError(f"the run has no answer to this query: {line.error}")
        prompts = tuple(SamPrompt(box) for box in self._boxes[line.id])
        return Answer(line.status, prompts, line.answer or "", line.error)

    def _digest(self) -> str:
        """Return the sha256 of all that the baseline depends on, in the order of the ids."""
        content = hashlib.sha256()
        for name, line in sorted(self._answers.items()):
            content.update(json.dumps([name, line.status, line.answer, line.error, self._boxes[name]]).encode() + b"\n")
        return content.hexdigest()


def predict_from_boxes(
    pipeline: Pipeline,
    queries: Sequence[Query],
    answers: Iterable[PredictionLine],
    output: Path,
    *,
    advance: Advance = ignore,
    processes: DistributedContext = SINGLE_PROCESS,
) -> BatchSummary:
    """Compute SAM's masks for the boxes of `answers` as a batch job in `output`, which is resumed like any other.

    Predictions in `output` that were made from other answers are replaced.

    Raises:
        DataError: An answer with an object that has points and no box.
        KeyError: A query without an answer.
    """
    predictor = BoxPredictor(pipeline, answers)
    with folder_lock(output, "predicting", active=processes.is_main):
        if processes.is_main:
            _remove_outdated(output, predictor.identity["answers"])
        return predict(predictor, queries, output, advance=advance, processes=processes)


def filled_boxes(answers: Iterable[PredictionLine]) -> Iterator[PredictionLine]:
    """Yield the lines with each object's mask replaced by its filled box: every pixel with its center in the box.

    The points are left out, as they have no effect on these masks.

    Raises:
        DataError: An answer with an object that has points and no box.
    """
    for line in answers:
        objects = []
        for item in line.objects:
            height, width = item.segmentation["size"]
            box = _box(item, line)
            objects.append(PredictedObject(encode(mask_of_box(box, (width, height))), SamPrompt(box)))
        yield replace(line, objects=tuple(objects))


def _box(item: PredictedObject, line: PredictionLine) -> Box:
    if item.prompt is None or item.prompt.box is None:
        raise DataError(
            f"prediction {line.id}: an object has no box, so a baseline of boxes is not defined; leave the "
            "baselines out"
        )
    return item.prompt.box


def _remove_outdated(output: Path, digest: str) -> None:
    """Remove the job in `output` if its answers have another digest."""
    job = output / JOB
    if job.is_file() and json.loads(job.read_text(encoding="utf-8")).get("answers") != digest:
        # The file that identifies the job is removed last: without it, shards that remain would belong to the next job.
        if (output / "shards").is_dir():
            shutil.rmtree(output / "shards")
        (output / PREDICTIONS).unlink(missing_ok=True)
        job.unlink()
