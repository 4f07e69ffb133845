"""Answers of the tasks that are scored without masks: the queries, and the lines of their predictions.jsonl.

A line needs the fields that its task scores:

    rec                {"id", "status", "boxes_xyxy": [[x1, y1, x2, y2], ...]}     or a line of `predict`
    region-caption     {"id", "answer": caption}
    pope               {"id", "answer": text}
    grounded-caption   {"id", "phrases": [{"phrase": text, "boxes_xyxy": [[x1, y1, x2, y2], ...]}, ...]}

Boxes are in pixels of the original image. The status is "ok" (the default), "no_object" or "malformed" (rec), or
"error" for a query that could not be answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from sam4mllm.data.image_sources import ImageSource
from sam4mllm.data.json_lines import encodable
from sam4mllm.data.predictions import Query, Status
from sam4mllm.data.records import Record, Text, parse_record, raise_problems, read_lines, shorten
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.evaluation.tally import refuse_bad_ids
from sam4mllm.geometry import Box


@dataclass(frozen=True, slots=True)
class MarkedPhrase:
    """A noun phrase of an answer, with the boxes that the answer marks for it, in pixels of the image."""

    phrase: str
    boxes: tuple[Box, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `phrases`."""
        return {"phrase": self.phrase, "boxes_xyxy": [list(box) for box in self.boxes]}


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One line of predictions.jsonl: the answer to the query with the same id.

    status: "ok", "no_object" (the model answered that there is none), "malformed" (boxes were expected and the text
        could not be parsed) or "error" (an exception prevented an answer).
    answer: the text that the model generated; of a caption, without its marks.
    boxes: for the task rec: the boxes of the answer, in pixels of the image.
    phrases: for the task grounded-caption.
    question: what was asked: a referring expression for rec.
    error: the reason for the status "malformed" or "error".
    finished: False if the limit of tokens cut the text off.
    """

    id: str
    status: Status = "ok"
    answer: str | None = None
    boxes: tuple[Box, ...] | None = None
    phrases: tuple[MarkedPhrase, ...] | None = None
    image: ImageSource | None = None
    question: str | None = None
    error: str | None = None
    finished: bool = True

    def line(self, query: Query) -> AnswerLine:
        """Return this line, which `TaskPredictor` makes for the query that it answers."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the line of predictions.jsonl; `boxes_xyxy`, `phrases` and `finished` only where they are known."""
        return {
            "id": self.id,
            "image": None if self.image is None else str(self.image),
            "question": self.question,
            "status": self.status,
            "answer": self.answer,
            **({} if self.boxes is None else {"boxes_xyxy": [list(box) for box in self.boxes]}),
            **({} if self.phrases is None else {"phrases": [each.to_json() for each in self.phrases]}),
            **({} if self.finished else {"finished": False}),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class TaskQuery(Query):
    """A question about an image; its `phrase` is the question's text, or a referring expression.

    `regions` are the boxes that the text names, in pixels of the image, in the order of its markers.
    """

    regions: tuple[Box, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the query as plain JSON, for the digest of a job."""
        regions = [list(box) for box in self.regions]
        content = {"id": self.id, "image": str(self.image), "phrase": self.phrase}
        return content | ({"regions_xyxy": regions} if regions else {})

    def failed(self, message: str) -> AnswerLine:
        """Return the line with the status "error" for a query that could not be answered."""
        return AnswerLine(self.id, "error", image=self.image, question=self.phrase, error=encodable(message))


class _PhraseRecord(Record):
    phrase: Text
    boxes_xyxy: list[list[float]]


class _ObjectRecord(Record):
    box_xyxy: list[float] | None = None


class _AnswerRecord(Record):
    id: Text
    status: Text = "ok"
    answer: Text | None = None
    boxes_xyxy: list[list[float]] | None = None
    objects: list[_ObjectRecord] | None = None
    phrases: list[_PhraseRecord] | None = None
    image: Text | None = None
    question: Text | None = None
    error: Text | None = None
    finished: bool = Field(default=True)

    def boxes(self) -> tuple[Box, ...] | None:
        """Return the boxes, also those of the objects of a line of `predict`."""
        if self.boxes_xyxy is None and self.objects is not None:
            return tuple(_box(item.box_xyxy, "objects.box_xyxy") for item in self.objects if item.box_xyxy is not None)
        return None if self.boxes_xyxy is None else tuple(_box(box, "boxes_xyxy") for box in self.boxes_xyxy)


def _box(values: Sequence[float], field: str) -> Box:
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise DataError(f"{field} is [x1, y1, x2, y2] in pixels; found {shorten(values)}", "field")
    box = Box(*values)
    if box.x1 > box.x2 or box.y1 > box.y2:
        raise DataError(f"{field} is [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2; found {shorten(values)}", "field")
    return box


def answer_from_json(value: object) -> AnswerLine:
    """Parse the JSON value of a line.

    Raises:
        DataError: A field that is missing or of another type; an unknown status; a box whose corners are out of order.
    """
    record = parse_record(_AnswerRecord, value)
    status = next((known for known in get_args(Status) if known == record.status), None)
    if status is None:
        raise DataError(f"the status is one of {', '.join(get_args(Status))}; found {record.status!r}", "field")
    phrases = record.phrases
    return AnswerLine(
        id=record.id,
        status=status,
        answer=record.answer,
        boxes=record.boxes(),
        phrases=None if phrases is None else tuple(map(_marked_phrase, phrases)),
        image=None if record.image is None else Path(record.image),
        question=record.question,
        error=record.error,
        finished=record.finished,
    )


def _marked_phrase(record: _PhraseRecord) -> MarkedPhrase:
    return MarkedPhrase(record.phrase, tuple(_box(box, "phrases.boxes_xyxy") for box in record.boxes_xyxy))


def read_answers(path: Path) -> Iterator[AnswerLine]:
    """Read the lines of a predictions.jsonl one by one, in order; blank lines are skipped.

    Raises:
        PredictionsError: No such file; or, after the last line, bad lines (all are counted, the first ten listed).
    """
    problems: list[DataError] = []
    for _, line in read_lines(path, answer_from_json, problems, PredictionsError):
        yield line
    raise_problems(path, problems, PredictionsError)


def answers_by_id(
    lines: Iterable[AnswerLine | Mapping[str, Any]], ids: Iterable[str], split: str, needs: str | None
) -> dict[str, AnswerLine]:
    """Return the answers by the ids of the queries; queries without an answer are left out.

    Args:
        lines: One line per query, in any order.
        ids: The ids of all queries.
        split: The name of the data set and the split, for messages.
        needs: The field that each line with the status "ok" must have: "answer", "boxes" or "phrases".

    Raises:
        PredictionsError: Ids without a query, repeated ids, or a line without the field.
    """
    known = set(ids)
    answers: dict[str, AnswerLine] = {}
    unknown: list[str] = []
    repeated: list[str] = []
    for value in lines:
        line = value if isinstance(value, AnswerLine) else answer_from_json(value)
        if line.id not in known:
            unknown.append(line.id)
        elif line.id in answers:
            repeated.append(line.id)
        elif needs is not None and line.status == "ok" and getattr(line, needs) is None:
            name = {"boxes": "boxes_xyxy"}.get(needs, needs)
            raise PredictionsError(f"prediction {line.id}: the field {name!r} is missing, which this task scores")
        answers.setdefault(line.id, line)
    refuse_bad_ids(unknown, repeated, split)
    return answers
