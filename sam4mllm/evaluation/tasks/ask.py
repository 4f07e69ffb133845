"""The predictor of the tasks without masks: answers queries in batch jobs, in the form of the pipeline's method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam4mllm.data.images import Rgb
from sam4mllm.data.predictions import Query
from sam4mllm.errors import ModelError
from sam4mllm.evaluation.tasks.answers import AnswerLine, TaskQuery
from sam4mllm.evaluation.tasks.base import TaskName
from sam4mllm.evaluation.tasks.grounded_caption import marked_phrases
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Question
from sam4mllm.methods.text import TextQuestion, ask_text
from sam4mllm.mllm.constrained_engine import constrained_engine
from sam4mllm.pipeline.pipeline import Pipeline


class TaskPredictor:
    """A `batch.Predictor` for a task: boxes of phrases (rec), or answers in text; SAM is not used.

    Raises:
        ModelError: The pipeline merges votes, which are masks.
    """

    def __init__(self, pipeline: Pipeline, task: TaskName) -> None:
        if pipeline.votes is not None:
            raise ModelError(f"votes are merged by their masks, which the task {task} does not have; leave them out")
        self._pipeline = pipeline
        self._task = task
        self._engine = pipeline.engine
        if task == "rec" and pipeline.constrained:
            self._engine = constrained_engine(pipeline.engine, pipeline.method.answer_form)
        self.image_batch = pipeline.image_batch

    @property
    def identity(self) -> dict[str, Any]:
        """The task, the model and the settings as plain JSON."""
        known = self._pipeline.identity
        left_out = ("segmenter", "calibration") if self._task == "rec" else ("segmenter", "calibration", "constrained")
        return {"task": self._task, **{key: value for key, value in known.items() if key not in left_out}}

    def answer_queries(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[AnswerLine]:
        """Return the answers to (index of the image, query) pairs, in their order."""
        return self._boxes(images, queries) if self._task == "rec" else self._texts(images, queries)

    def _boxes(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[AnswerLine]:
        questions = [Question(images[index], query.phrase, _size_wh(images[index])) for index, query in queries]
        answers = self._pipeline.method.ask(self._engine, questions, self._pipeline.max_new_tokens)
        return [
            AnswerLine(
                query.id,
                answer.status,
                answer.text,
                boxes=tuple(prompt.box for prompt in answer.prompts if prompt.box is not None),
                image=query.image,
                question=query.phrase,
                error=answer.reason,
            )
            for (_, query), answer in zip(queries, answers, strict=True)
        ]

    def _texts(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[AnswerLine]:
        questions = [
            TextQuestion(images[index], _size_wh(images[index]), query.phrase, _regions(query))
            for index, query in queries
        ]
        answers = ask_text(self._pipeline.method, self._engine, questions, self._pipeline.max_new_tokens)
        marked = self._task == "grounded-caption"
        return [
            AnswerLine(
                query.id,
                answer=answer.text,
                phrases=marked_phrases(answer.text, [(each.end, each.box) for each in answer.marks])
                if marked
                else None,
                image=query.image,
                question=query.phrase,
                finished=answer.finished,
            )
            for (_, query), answer in zip(queries, answers, strict=True)
        ]


def _size_wh(image: Rgb) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _regions(query: Query) -> tuple[Box, ...]:
    return query.regions if isinstance(query, TaskQuery) else ()
