"""The lines of predictions.jsonl: what a result makes of its query, and what a calibration makes of a line.

This module writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import Confidence, PredictedObject, PredictionLine, Query, prediction_from_json
from sam4mllm.errors import DataError
from sam4mllm.pipeline.result import Result
from sam4mllm.runs.calibration import Calibration, scores_of


def rescored(record: object, calibration: Calibration) -> PredictionLine:
    """The prediction that a line's JSON holds, with the scores that `calibration` makes of its evidence."""
    line = prediction_from_json(record)
    confidence = [item.confidence or Confidence() for item in line.objects] if line.status == "ok" else []
    if line.confidence is not None:
        confidence = [line.confidence]
    scores, score = scores_of(line.status, confidence, calibration)
    objects = [replace(item, score=round(each, 4)) for item, each in zip(line.objects, scores, strict=True)]
    return replace(line, objects=tuple(objects), score=None if score is None else round(score, 4))


def line_of(query: Query, result: Result) -> PredictionLine:
    """The prediction that a result makes of its query, with scores to four digits, as evidence has.

    Raises:
        DataError: a score that is no finite number, as half precision can make.
    """
    scores = [float(score) for score in result.scores.cpu()]
    ious = [each.iou for each in result.confidence if each.iou is not None]
    if not all(map(math.isfinite, ious)):
        raise DataError(f"{query.image}: the segmenter's scores are not finite: {ious}; give it --dtype float32")
    said = [value for each in result.confidence for value in (each.text, each.points) if value is not None]
    if not all(map(math.isfinite, (*said, *scores, result.score or 0.0))):
        raise DataError(f"{query.image}: the model's probabilities are not finite: {said}; give it --dtype float32")
    masks = result.masks.cpu().numpy()
    objects: Sequence[Confidence | None] = result.confidence if result.status == "ok" else ()
    alone: Sequence[bool | None] = result.box_alone or (None,) * len(result.prompts)
    nothing = result.confidence[0] if result.status == "no_object" and result.confidence else None
    return PredictionLine(
        id=query.id,
        status=result.status,
        objects=tuple(
            PredictedObject(encode(mask), prompt, round(score, 4), confidence, box_alone)
            for mask, prompt, score, confidence, box_alone in zip(
                masks, result.prompts, scores, objects, alone, strict=True
            )
        ),
        image=query.image,
        phrase=query.phrase,
        answer=result.answer,
        error=result.reason,
        score=None if result.score is None else round(result.score, 4),
        confidence=nothing,
    )
