"""Baselines made of answers that are there already: what the box says without the points, and without SAM.

`box` gives SAM the boxes of the answers alone; `filled-box` takes the boxes, filled, for the masks. No model is asked
again: both go by a run's predictions.jsonl, and what was no object, malformed or an error there is so here, too. This
module knows no scores and no data set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import Advance, ignore

BOX = "box"
FILLED_BOX = "filled-box"
BASELINES = (BOX, FILLED_BOX)


class BoxAlone:
    """Answers queries by the boxes of answers that were given before: `batch.predict` takes it for a pipeline.

    Args:
        pipeline: whose segmenter draws the masks.
        answers: by query id, the lines that the run wrote.

    Raises:
        DataError: an answer that prompts with points alone.
    """

    def __init__(self, pipeline: Pipeline, answers: Mapping[str, PredictionLine]) -> None:
        self._pipeline = pipeline
        self._answers = answers
        self._boxes = {line.id: [_box(item, line) for item in line.objects] for line in answers.values()}
        self.image_batch = pipeline.image_batch
        self.identity: dict[str, Any] = {
            "baseline": BOX,
            "answers": _digest(answers.values()),
            "segmenter": pipeline.segmenter.fingerprint,
        }

    def respond(self, images: Sequence[Rgb], asked: Sequence[tuple[int, Query]]) -> list[Result]:
        """The results of (index of the image, query) pairs, in their order.

        Raises:
            DataError: a query that came out as an error, so that there is no answer to take a box from.
        """
        answers = [self._answer(self._answers[query.id]) for _, query in asked]
        with torch.no_grad():
            return self._pipeline.segment(images, [owner for owner, _ in asked], answers)

    def _answer(self, line: PredictionLine) -> Answer:
        if line.status == "error":
            raise DataError(f"was not answered: {line.error}")
        prompts = tuple(SamPrompt(box) for box in self._boxes[line.id])
        return Answer(line.status, prompts, line.answer or "", line.error)


def box_alone(
    pipeline: Pipeline,
    queries: Sequence[Query],
    answers: Iterable[PredictionLine],
    output: Path,
    *,
    advance: Advance = ignore,
    processes: DistributedContext = SINGLE_PROCESS,
) -> BatchSummary:
    """SAM's masks of the answers' boxes as predictions of their own in `output`, resumed as any batch run is.

    What `output` holds of other answers is done again: it follows from them, so nothing is lost.

    Raises:
        DataError: an answer that prompts with points alone.
        KeyError: a query without an answer.
    """
    alone = BoxAlone(pipeline, {line.id: line for line in answers})
    if processes.is_main:
        _discard_other(output, alone.identity["answers"])
    return predict(alone, queries, output, advance=advance, processes=processes)


def filled_boxes(answers: Iterable[PredictionLine]) -> Iterator[PredictionLine]:
    """The lines with each object's mask replaced by its box, filled: every pixel whose centre lies in it.

    Raises:
        DataError: an answer that prompts with points alone.
    """
    for line in answers:
        objects = []
        for item in line.objects:
            height, width = item.segmentation["size"]
            mask = mask_of_box(_box(item, line), (width, height))
            objects.append(PredictedObject(encode(mask), item.prompt))
        yield replace(line, objects=tuple(objects))


def _box(item: PredictedObject, line: PredictionLine) -> Box:
    if item.prompt is None or item.prompt.box is None:
        raise DataError(f"prediction {line.id}: an object has no box, so there is no baseline of boxes; leave it out")
    return item.prompt.box


def _discard_other(output: Path, answers: str) -> None:
    """Removes what `output` holds of other answers than those of this digest."""
    job = output / "job.json"
    if job.is_file() and json.loads(job.read_text(encoding="utf-8")).get("answers") != answers:
        shutil.rmtree(output)


def _digest(answers: Iterable[PredictionLine]) -> str:
    """sha256 of all that the baseline depends on, whatever the order of the lines."""
    content = hashlib.sha256()
    for line in sorted(answers, key=lambda line: line.id):
        boxes = [None if item.prompt is None else item.prompt.box for item in line.objects]
        content.update(json.dumps([line.id, line.status, line.answer, line.error, boxes]).encode() + b"\n")
    return content.hexdigest()
