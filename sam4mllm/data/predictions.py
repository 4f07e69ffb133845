"""Queries and predictions: the lines of queries.jsonl and predictions.jsonl, read, checked and written.

A query asks one phrase of one image; a prediction is one answer, from this program or any other. Scores need only
`id`, `status` and the objects' `segmentation`; what else is there is checked too, what is not there stays None. Files
are read line by line, so that their length costs no memory. This module knows nothing about models or scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from sam4mllm.data.fields import check_not_empty, check_phrase, require_field, shorten
from sam4mllm.data.json_lines import raise_faults, read_lines
from sam4mllm.data.masks import Rle, check_rle
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.geometry import Box, Point, SamPrompt

Status = Literal["ok", "no_object", "malformed", "error"]

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Query:
    """One phrase asked of one image. `image` is the path as given; the phrase may be empty (RefCOCOg has such)."""

    id: str
    image: Path
    phrase: str

    def to_json(self) -> dict[str, Any]:
        """The line of queries.jsonl."""
        return {"id": self.id, "image": str(self.image), "phrase": self.phrase}


@dataclass(frozen=True, slots=True)
class Confidence:
    """What speaks for one object of an answer, or for an answer that nothing fits; None where nobody said.

    text: the mean natural logarithm of the probabilities of the tokens that wrote the object's box (or the answer).
    points: the mean probability of the yes and no answers whose points SAM was given.
    iou: SAM's own guess of its mask's IoU.
    """

    text: float | None = None
    points: float | None = None
    iou: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The values to four digits, which do not depend on what else was computed in the same batch."""
        return {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class PredictedObject:
    """One object of an answer: its mask at the original image's size, what SAM was asked, and how sure it is.

    `score` is from 0 to 1: the probability that the mask is right (IoU > 0.5), or SAM's own guess of its IoU in a run
    that is not calibrated. `prompt`, `score` and `evidence` are None where another program gave none. `box_alone` says
    whether the prompt's points were left out because they seemed to hurt; None where a run does not look at that.
    """

    segmentation: Rle
    prompt: SamPrompt | None = None
    score: float | None = None
    confidence: Confidence | None = None
    box_alone: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of `objects`; coordinates in pixels of the original image. What this program adds to the
        contract, `evidence` and `box_alone`, stands in it where it is known.
        """
        box = self.prompt.box if self.prompt is not None else None
        points = self.prompt.points if self.prompt is not None else ()
        return {
            "box_xyxy": None if box is None else [float(value) for value in box],
            "points_xy": [[float(point.x), float(point.y)] for point in points],
            "point_labels": [int(point.label) for point in points],
            "segmentation": {"size": list(self.segmentation["size"]), "counts": self.segmentation["counts"]},
            "score": self.score,
            **({} if self.confidence is None else {"evidence": self.confidence.to_json()}),
            **({} if self.box_alone is None else {"box_alone": self.box_alone}),
        }


@dataclass(frozen=True, slots=True)
class PredictionLine:
    """One line of predictions.jsonl. The union of the objects' masks is the answer's mask.

    `status` tells three things apart: the model found nothing ("no_object"), its text was no answer ("malformed"), or
    something failed before it could answer ("error"). `error` tells why for the last two. `score` is how sure the whole
    answer is, from 0 to 1; `evidence` is what speaks for an answer that nothing fits.
    """

    id: str
    status: Status
    objects: tuple[PredictedObject, ...] = ()
    image: Path | None = None
    phrase: str | None = None
    answer: str | None = None
    error: str | None = None
    score: float | None = None
    confidence: Confidence | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of predictions.jsonl; `score` and `evidence` stand in it where they are known."""
        return {
            "id": self.id,
            "image": None if self.image is None else str(self.image),
            "phrase": self.phrase,
            "status": self.status,
            "answer": "" if self.answer is None else self.answer,
            "objects": [item.to_json() for item in self.objects],
            "error": self.error,
            **({} if self.score is None else {"score": self.score}),
            **({} if self.confidence is None else {"evidence": self.confidence.to_json()}),
        }


def queries_of(samples: Iterable[Sample]) -> list[Query]:
    """The queries that a data set asks, in its order."""
    return [Query(sample.id, sample.image, sample.phrase) for sample in samples]


def read_queries(path: Path) -> list[Query]:
    """All queries of a queries.jsonl, in order; blank lines are skipped.

    Raises:
        DataError: no such file, no query in it, or bad lines (all counted, the first ten told by line number): no JSON
            object, a field missing or of another type, an id that an earlier line has.
    """
    first_lines: dict[str, int] = {}
    queries: list[Query] = []
    faults: list[str] = []
    for number, query in read_lines(path, _query, faults):
        if query.id in first_lines:
            faults.append(f"line {number}: the id {query.id!r} is line {first_lines[query.id]}'s too")
        first_lines.setdefault(query.id, number)
        queries.append(query)
    raise_faults(path, faults)
    if not queries:
        raise DataError(f'{path}: no query in it; a line is {{"id": text, "image": path, "phrase": text}}')
    return queries


def read_predictions(path: Path) -> Iterator[PredictionLine]:
    """The predictions of a predictions.jsonl, one by one in order; blank lines are skipped.

    Raises:
        PredictionsError: no such file; or, once the file is read through, bad lines (all counted, the first ten told by
            line number).
    """
    faults: list[str] = []
    for _, prediction in read_lines(path, prediction_from_json, faults, PredictionsError):
        yield prediction
    raise_faults(path, faults, PredictionsError)


def dump_line(record: Query | PredictionLine) -> str:
    """The record as one line of JSON, with its line end; one record has one text, whoever writes it."""
    return json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"


def prediction_from_json(value: object) -> PredictionLine:
    """The prediction that a line's JSON holds.

    Raises:
        DataError: a field that is missing or of another type; an unknown status; run lengths that do not fill their
            size.
        ValueError: a box or points that are no SAM prompt.
    """
    identity, status = require_field(value, "id", str, "prediction"), require_field(value, "status", str, "prediction")
    if status not in get_args(Status):
        raise DataError(f"the status is one of {', '.join(get_args(Status))}; found {status!r}")
    record = cast(dict[str, Any], value)
    # Only an answer that found something must hold objects.
    entries = require_field(record, "objects", list, "prediction") if status == "ok" or "objects" in record else []
    image = _maybe(record, "image", str)
    return PredictionLine(
        id=identity,
        status=cast(Status, status),
        objects=tuple(_object(entry) for entry in entries),
        image=None if image is None else Path(image),
        phrase=_maybe(record, "phrase", str),
        answer=_maybe(record, "answer", str),
        error=_maybe(record, "error", str),
        score=_number(record, "score"),
        confidence=_evidence(record),
    )


def _object(entry: object) -> PredictedObject:
    record = require_field({"object": entry}, "object", dict, "prediction")
    box = _maybe(record, "box_xyxy", list)
    points = _maybe(record, "points_xy", list) or []
    labels = _maybe(record, "point_labels", list) or []
    if box is not None and len(box) != 4:
        raise DataError(f"box_xyxy is [x1, y1, x2, y2] in pixels; found {shorten(box)}")
    if len(points) != len(labels) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DataError(
            f"points_xy is a list of [x, y], each with its label; found {shorten(points)}, {shorten(labels)}"
        )
    numbers = [*(box or ()), *(value for point in points for value in point), *labels]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise DataError(f"coordinates and labels are numbers; found {shorten(numbers)}")
    prompt = None
    if box is not None or points:
        marked = tuple(Point(float(x), float(y), label) for (x, y), label in zip(points, labels, strict=True))
        prompt = SamPrompt(None if box is None else Box(*map(float, box)), marked)
    return PredictedObject(
        check_rle(record.get("segmentation")),
        prompt,
        _number(record, "score"),
        _evidence(record),
        _maybe(record, "box_alone", bool),
    )


def _evidence(record: dict[str, Any]) -> Confidence | None:
    found = _maybe(record, "evidence", dict)
    return None if found is None else Confidence(*(_number(found, name) for name in ("text", "points", "iou")))


def _number(record: dict[str, Any], key: str) -> float | None:
    """The number, None where it is missing or null."""
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DataError(f"{key} is a number or null; found {shorten(value)}")
    return None if value is None else float(value)


def _query(value: object) -> Query:
    where = "query"
    identity, image = require_field(value, "id", str, where), require_field(value, "image", str, where)
    phrase = require_field(value, "phrase", str, where)
    check_phrase(check_not_empty(phrase, f"query {shorten(identity)}"), f"query {shorten(identity)}")
    return Query(identity, Path(image), phrase)


def _maybe(record: dict[str, Any], key: str, kind: type[Record]) -> Record | None:
    """The field, None where it is missing or null."""
    return None if record.get(key) is None else require_field(record, key, kind, "prediction")
