"""Queries and predictions: the lines of queries.jsonl, and reading and validating those of predictions.jsonl.

A query is one phrase about one image; a prediction is the answer to it, by this program or any other. Scores need only
`id`, `status` and the objects' `segmentation`; the other fields are validated if they are given, and None if not.
Predictions are read line by line, so that memory does not depend on the length of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AliasChoices, BeforeValidator, Field

from sam4mllm.data.image_sources import ImageSource, image_source
from sam4mllm.data.json_lines import JsonRecord, encodable
from sam4mllm.data.masks import Rle, check_rle
from sam4mllm.data.records import (
    Record,
    Text,
    parse_record,
    raise_problems,
    read_lines,
    shorten,
)
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.geometry import Box, Point, SamPrompt

Status = Literal["ok", "no_object", "malformed", "error"]


@dataclass(frozen=True, slots=True)
class Query:
    """One phrase about one image, to be answered by a model.

    id: unique in its file; the prediction has the same id.
    image: the file or the URL as it was given, or the row of a Parquet file that contains the image.
    phrase: the referring expression; it may be empty in published data sets (RefCOCOg has such).
    """

    id: str
    image: ImageSource
    phrase: str

    def to_json(self) -> dict[str, Any]:
        """Return the line of queries.jsonl."""
        return {"id": self.id, "image": str(self.image), "phrase": self.phrase}

    def failed(self, message: str) -> JsonRecord:
        """Return the prediction with the status "error" for a query that could not be answered."""
        return PredictionLine(
            id=self.id, status="error", image=self.image, phrase=self.phrase, error=encodable(message)
        )


@dataclass(frozen=True, slots=True)
class Confidence:
    """The signals from which a score is calibrated, of one object or of a "no object" answer; None if not measured.

    text: the mean log probability (natural) of the tokens of the object's box, or of the "no object" answer.
    points: the mean probability of the yes/no answers for the points that were given to SAM.
    iou: SAM's own prediction of its mask's IoU.
    """

    text: float | None = None
    points: float | None = None
    iou: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values rounded to four digits, which do not depend on the rest of the batch."""
        return {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class PredictedObject:
    """One object of an answer.

    segmentation: the mask, at the original image's size.
    prompt: the box and points that were given to SAM, in pixels of the original image.
    score: from 0 to 1: the probability that the mask's IoU is above 0.5 if the run is calibrated, else SAM's own
        prediction of the IoU.
    confidence: the signals behind the score.

    All but the mask are None if another program does not give them.
    """

    segmentation: Rle
    prompt: SamPrompt | None = None
    score: float | None = None
    confidence: Confidence | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `objects`, in pixels of the image; `confidence` only if known."""
        box = self.prompt.box if self.prompt is not None else None
        points = self.prompt.points if self.prompt is not None else ()
        return {
            "box_xyxy": None if box is None else [float(value) for value in box],
            "points_xy": [[float(point.x), float(point.y)] for point in points],
            "point_labels": [int(point.label) for point in points],
            "segmentation": {"size": list(self.segmentation["size"]), "counts": self.segmentation["counts"]},
            "score": self.score,
            **({} if self.confidence is None else {"confidence": self.confidence.to_json()}),
        }


CUT_OFF = "cut off at max_new_tokens="
"""The beginning of the reason of a malformed answer that the limit of tokens cut off."""


@dataclass(frozen=True, slots=True)
class PredictionLine:
    """One line of predictions.jsonl: the answer to the query with the same id.

    status: "ok" (objects were found), "no_object" (the model answered that there is none), "malformed" (its text could
        not be parsed), or "error" (an exception prevented an answer).
    objects: the answer's mask is the union of their masks.
    answer: the text that the model generated.
    error: the reason for the status "malformed" or "error".
    score: the confidence in the answer as a whole, from 0 to 1.
    confidence: the signals behind the score of a "no object" answer.
    """

    id: str
    status: Status
    objects: tuple[PredictedObject, ...] = ()
    image: ImageSource | None = None
    phrase: str | None = None
    answer: str | None = None
    error: str | None = None
    score: float | None = None
    confidence: Confidence | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line of predictions.jsonl; `score` and `confidence` only if known."""
        return {
            "id": self.id,
            "image": None if self.image is None else str(self.image),
            "phrase": self.phrase,
            "status": self.status,
            "answer": "" if self.answer is None else self.answer,
            "objects": [item.to_json() for item in self.objects],
            "error": self.error,
            **({} if self.score is None else {"score": self.score}),
            **({} if self.confidence is None else {"confidence": self.confidence.to_json()}),
        }


def is_cut_off(status: str, reason: str | None) -> bool:
    """Return whether an answer is malformed because the limit of tokens cut it off; `reason` is its line's `error`."""
    return status == "malformed" and reason is not None and reason.startswith(CUT_OFF)


class _ConfidenceRecord(Record):
    text: float | None = None
    points: float | None = None
    iou: float | None = None

    def confidence(self) -> Confidence:
        return Confidence(self.text, self.points, self.iou)


def _ignore_foreign(value: object) -> object:
    """Return None for a confidence that is not an object, such as the number that other programs may write there."""
    return value if isinstance(value, dict) else None


# Older files call the confidence "evidence".
_ConfidenceField = Annotated[
    _ConfidenceRecord | None,
    BeforeValidator(_ignore_foreign),
    Field(validation_alias=AliasChoices("confidence", "evidence")),
]


class _ObjectRecord(Record):
    segmentation: Any = None
    box_xyxy: list[float] | None = None
    points_xy: list[list[float]] | None = None
    point_labels: list[int | float] | None = None
    score: float | None = None
    confidence: _ConfidenceField = None

    def predicted_object(self) -> PredictedObject:
        return PredictedObject(
            check_rle(self.segmentation),
            self._prompt(),
            self.score,
            None if self.confidence is None else self.confidence.confidence(),
        )

    def _prompt(self) -> SamPrompt | None:
        box, points, labels = self.box_xyxy, self.points_xy or [], self.point_labels or []
        if box is not None and len(box) != 4:
            raise DataError(f"box_xyxy is [x1, y1, x2, y2] in pixels; found {shorten(box)}")
        if len(points) != len(labels) or not all(len(point) == 2 for point in points):
            raise DataError(
                f"points_xy is a list of [x, y], each with its label; found {shorten(points)}, {shorten(labels)}"
            )
        if box is None and not points:
            return None
        labeled = tuple(Point(x, y, cast(int, label)) for (x, y), label in zip(points, labels, strict=True))
        return SamPrompt(None if box is None else Box(*box), labeled)


class _PredictionRecord(Record):
    id: Text
    status: Status
    objects: list[_ObjectRecord] = Field(default=[])
    image: Text | None = None
    phrase: Text | None = None
    answer: Text | None = None
    error: Text | None = None
    score: float | None = None
    confidence: _ConfidenceField = None


def queries_of(samples: Iterable[Sample]) -> list[Query]:
    """Return a data set's queries, in the order of its samples."""
    return [Query(sample.id, sample.image, sample.phrase) for sample in samples]


def read_predictions(path: Path) -> Iterator[PredictionLine]:
    """Read the predictions of a predictions.jsonl one by one, in order; blank lines are skipped.

    Raises:
        PredictionsError: No such file; or, after the last line, bad lines (all are counted, the first ten listed).
    """
    problems: list[DataError] = []
    for _, prediction in read_lines(path, prediction_from_json, problems, PredictionsError):
        yield prediction
    raise_problems(path, problems, PredictionsError)


def prediction_from_json(value: object) -> PredictionLine:
    """Parse the JSON value of a line of predictions.jsonl.

    Raises:
        DataError: A field that is missing or of another type; an unknown status.
        ValueError: An invalid RLE, box or point.
    """
    if isinstance(value, dict) and isinstance(value.get("status"), str) and value["status"] not in get_args(Status):
        raise DataError(f"the status is one of {', '.join(get_args(Status))}; found {value['status']!r}")
    record = parse_record(_PredictionRecord, value)
    # Only an answer with objects must list them.
    if record.status == "ok" and "objects" not in record.model_fields_set:
        raise DataError("the field 'objects' is missing; a prediction with status ok lists its objects")
    return PredictionLine(
        id=record.id,
        status=record.status,
        objects=tuple(item.predicted_object() for item in record.objects),
        image=None if record.image is None else image_source(record.image),
        phrase=record.phrase,
        answer=record.answer,
        error=record.error,
        score=record.score,
        confidence=None if record.confidence is None else record.confidence.confidence(),
    )
