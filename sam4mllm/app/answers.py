"""Answers of the page: phrases about one image, answered by one pipeline, by its boxes alone, or by a second pipeline.

Several users share the pipelines, which answer one request at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sam4mllm.data.images import Rgb
from sam4mllm.data.predictions import Query
from sam4mllm.geometry import NEGATIVE, POSITIVE, Point, SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result
from sam4mllm.segmenters.base import Embeddings
from sam4mllm.viz.drawing import PALETTE, overlay

_MIN_LONG_SIDE = 512
_MAX_LONG_SIDE = 1280
"""Drawings have a longer side from here to there, in pixels; small images are enlarged by an integer factor."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Column:
    """One way to answer all phrases: a title, a result for each phrase, and the seconds that they took together.

    The results' tensors are on the pipeline's device.
    """

    title: str
    phrases: tuple[str, ...]
    results: tuple[Result, ...]
    seconds: float

    def rows(self) -> list[list[str]]:
        """Return the rows of the table of objects: number, phrase, score, box and points in pixels, answer.

        A phrase without objects has one row, with its status in the place of the number.
        """
        rows, number = [], 0
        for phrase, result in zip(self.phrases, self.results, strict=True):
            text = result.answer if result.reason is None else f"{result.answer} ({result.reason})"
            if not len(result.masks):
                score = "" if result.score is None else f"{result.score:.2f}"
                rows.append([result.status.replace("_", " "), phrase, score, "", "", text])
            for prompt, score in zip(result.prompts, result.scores.tolist(), strict=True):
                number += 1
                rows.append([str(number), phrase, f"{score:.2f}", _box_text(prompt), _points_text(prompt), text])
                # The text answers all objects of the phrase.
                text = ""
        return rows

    def draw(self, image: Rgb) -> Image.Image:
        """Draw the objects of all phrases over the image (H, W, 3); object i has the color `PALETTE[i]`."""
        masks = [mask for result in self.results for mask in result.masks.cpu().numpy()]
        return draw(image, masks, [prompt for result in self.results for prompt in result.prompts])

    def legend(self) -> str:
        """Return the legend of the drawing as HTML: a colored square, number, phrase and score for each object."""
        objects = [(row[0], row[1], row[2]) for row in self.rows()]
        parts = [legend_entry(number, phrase, score) for number, phrase, score in objects]
        return f"<b>{escape(self.title)}</b>, {self.seconds:.2f} s<br>" + "<br>".join(parts)


def legend_entry(number: str, phrase: str, score: str) -> str:
    """Return one line of a legend as HTML; `number` counts from 1, or is a status for a phrase without objects."""
    score = f", score {score}" if score else ""
    if not number.isdecimal():
        return escape(f"{number}: {phrase}{score}")
    color = "rgb({}, {}, {})".format(*PALETTE[(int(number) - 1) % len(PALETTE)])
    return f'<span style="color: {color}">&#9632;</span> {escape(f"{number} {phrase}{score}")}'


def draw(image: Rgb, masks: Sequence[Mask], prompts: Sequence[SamPrompt | None]) -> Image.Image:
    """Draw masks (H, W) and prompts over an image, at a size for a page; None is an object without a prompt."""
    height, width = image.shape[:2]
    # A prompt outside the image is not visible: it keeps the colors of masks and prompts equal.
    outside = SamPrompt(None, (Point(-width, -height, NEGATIVE),))
    drawing = overlay(image, masks, [prompt or outside for prompt in prompts], long_side=_MIN_LONG_SIDE)
    drawing.thumbnail((_MAX_LONG_SIDE, _MAX_LONG_SIDE))
    return drawing


class Models:
    """The pipelines of the page, which answer one request at a time.

    Args:
        pipelines: The pipelines by their titles; the answers of the first are corrected, and it answers folders.

    Attributes:
        title, pipeline: The first pipeline and its title.
        image_batch: The number of images that it answers in one call.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.pipelines = dict(pipelines)
        self.title, self.pipeline = next(iter(self.pipelines.items()))
        self.image_batch = self.pipeline.image_batch
        self._lock = threading.Lock()

    def answer(
        self, image: Rgb, phrases: Sequence[str], *, boxes_alone: bool = False, all_runs: bool = False
    ) -> list[Column]:
        """Answer phrases about an image (H, W, 3) uint8 RGB, with a column for each way that is asked for.

        Args:
            image: The image.
            phrases: The phrases.
            boxes_alone: Whether the boxes of the first pipeline's answers are segmented without their points, too.
            all_runs: Whether the other pipelines answer, too.
        """
        asked = [(0, phrase) for phrase in phrases]
        runs = self.pipelines if all_runs else {self.title: self.pipeline}
        columns = [self._column(title, phrases, partial(each.answer, [image], asked)) for title, each in runs.items()]
        if boxes_alone:
            results = columns[0].results
            boxes = partial(self._segment, image, [_boxes_of(result) for result in results])
            columns.insert(1, self._column(f"{self.title}, boxes alone", phrases, boxes))
        return columns

    def _column(self, title: str, phrases: Sequence[str], answer: Callable[[], Sequence[Result]]) -> Column:
        with self._lock:
            start = time.perf_counter()
            results = answer()
            return Column(title, tuple(phrases), tuple(results), time.perf_counter() - start)

    def _segment(self, image: Rgb, answers: Sequence[Answer]) -> list[Result]:
        with torch.no_grad():
            return self.pipeline.segment([image], [0] * len(answers), answers)

    def embed(self, image: Rgb) -> Embeddings:
        """Embed an image (H, W, 3) with the first pipeline's segmenter."""
        with self._lock, torch.no_grad():
            return self.pipeline.segmenter.embed([image])

    def segment(self, embeddings: Embeddings, prompt: SamPrompt) -> Mask:
        """Return the mask (H, W) of a prompt about an embedded image; the language model is not asked."""
        segmenter = self.pipeline.segmenter
        with self._lock, torch.no_grad():
            (mask,) = segmenter.masks(segmenter.decode(embeddings, [(0, prompt)]))
        return mask.cpu().numpy()

    # The models are a `Predictor` of batch jobs, whose batches alternate with the answers to other users.
    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the first pipeline."""
        return self.pipeline.identity

    def answer_queries(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[Result]:
        """Return the first pipeline's results of (index of the image, query) pairs, in their order."""
        with self._lock:
            return self.pipeline.answer_queries(images, queries)


def _boxes_of(result: Result) -> Answer:
    """Return an answer with the boxes of a result alone; points without a box are kept."""
    prompts = tuple(prompt if prompt.box is None else SamPrompt(prompt.box) for prompt in result.prompts)
    return Answer(result.status, prompts, result.answer, result.reason)


def _box_text(prompt: SamPrompt) -> str:
    return "" if prompt.box is None else ", ".join(f"{value:.0f}" for value in prompt.box)


def _points_text(prompt: SamPrompt) -> str:
    return " ".join(f"{'+' if each.label == POSITIVE else '-'}({each.x:.0f}, {each.y:.0f})" for each in prompt.points)
