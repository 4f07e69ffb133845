"""The result of a pipeline for one phrase, and its line of predictions.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from sam4mllm.data.images import ImageInput, as_rgb
from sam4mllm.data.masks import encode, tight_box
from sam4mllm.data.predictions import Confidence, PredictedObject, PredictionLine, Query
from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.runs.calibration import Calibration, scores_of

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections


@dataclass(frozen=True, slots=True)
class Result:
    """The masks of one phrase in one image, with the answer that they come from.

    Attributes:
        masks: (N, H, W) bool at the image's size, on the pipeline's device; N = 0 unless the status is "ok".
        prompts: The N prompts in the answer, in pixels of the original image.
        scores: (N,) float32, from 0 to 1: the calibrated probability that each mask is correct (IoU > 0.5); without
            calibration, SAM's estimate of its IoU.
        status: "ok"; "no_object" if the model answers that no object fits; "malformed" if it could not be parsed.
        answer: The text that the model generated.
        reason: Why the answer could not be parsed; None if it could.
        confidence: The quantities that the scores are computed from: of each of the N masks, or one for "no_object".
        score: The score of the complete answer, from 0 to 1, or None; see `calibration.scores_of`.

    With votes, scores are shares of agreement, and prompts and confidence are those of single answers; see `votes.py`.
    """

    masks: torch.Tensor
    prompts: list[SamPrompt]
    scores: torch.Tensor
    status: Literal["ok", "no_object", "malformed"]
    answer: str
    reason: str | None = None
    confidence: tuple[Confidence, ...] = ()
    score: float | None = None

    @property
    def mask(self) -> torch.Tensor:
        """The union of the masks, (H, W) bool, on their device; all False for N = 0."""
        return self.masks.any(dim=0)

    def line(self, query: Query) -> PredictionLine:
        """Return the line of predictions.jsonl for the query that this answers; see `prediction_line`."""
        return prediction_line(query, self)

    def draw(self, image: ImageInput, long_side: int = 0) -> Image.Image:
        """Draw masks, boxes and points over the image; see `viz.drawing.overlay`."""
        from sam4mllm.viz.drawing import overlay

        return overlay(as_rgb(image), list(self.masks.cpu().numpy()), self.prompts, long_side=long_side)

    def to_supervision(self) -> Detections:
        """Return the masks as `supervision.Detections`: N masks with their tight boxes and scores, all of class 0.

        Masks without a pixel are left out, because a Detections has a box for each. `data["prompt_box_xyxy"]` has the
        boxes of the prompts, in pixels; NaN for a prompt of points alone.

        Raises:
            ModelError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ModelError("to_supervision needs supervision: pip install 'sam4mllm[supervision]'") from error
        masks = self.masks.cpu().numpy()
        kept = [index for index, mask in enumerate(masks) if mask.any()]
        boxes = [tight_box(encode(masks[index])) for index in kept]
        prompts = [self.prompts[index].box or (math.nan,) * 4 for index in kept]
        return Detections(
            xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            mask=masks[kept],
            confidence=self.scores.cpu().numpy()[kept],
            class_id=np.zeros(len(kept), dtype=int),
            data={"prompt_box_xyxy": np.array(prompts, dtype=np.float32).reshape(-1, 4)},
        )


def result_of(
    answer: Answer,
    masks: Sequence[torch.Tensor],
    ious: Sequence[float],
    empty: torch.Tensor,
    calibration: Calibration | None,
) -> Result:
    """Return the result of a parsed answer.

    Args:
        answer: The answer.
        masks: The mask (H, W), bool, of each of its prompts.
        ious: The predicted IoU of each mask.
        empty: The masks (0, H, W), bool, of an answer without prompts, on their device.
        calibration: Computes the scores; None for uncalibrated ones.
    """
    confidence = answer.confidence
    if answer.status == "ok":
        known = confidence or (Confidence(),) * len(ious)
        confidence = tuple(replace(each, iou=iou) for each, iou in zip(known, ious, strict=True))
    scores, score = scores_of(answer.status, confidence, calibration)
    return Result(
        masks=torch.stack(list(masks)) if masks else empty,
        prompts=list(answer.prompts),
        scores=torch.tensor(scores, dtype=torch.float32, device=empty.device),
        status=answer.status,
        answer=answer.text,
        reason=answer.reason,
        confidence=confidence,
        score=score,
    )


def prediction_line(query: Query, result: Result) -> PredictionLine:
    """Return the line of predictions.jsonl for a query and its result, with scores rounded to four decimals.

    Raises:
        DataError: A score is not finite, which half precision can cause.
    """
    scores = [float(score) for score in result.scores.cpu()]
    _check_finite(query, result, scores)
    masks = result.masks.cpu().numpy()
    confidences: Sequence[Confidence | None] = result.confidence if result.status == "ok" else ()
    return PredictionLine(
        id=query.id,
        status=result.status,
        objects=tuple(
            PredictedObject(encode(mask), prompt, round(score, 4), confidence)
            for mask, prompt, score, confidence in zip(masks, result.prompts, scores, confidences, strict=True)
        ),
        image=query.image,
        phrase=query.phrase,
        answer=result.answer,
        error=result.reason,
        score=None if result.score is None else round(result.score, 4),
        confidence=result.confidence[0] if result.status == "no_object" and result.confidence else None,
    )


def _check_finite(query: Query, result: Result, scores: Sequence[float]) -> None:
    ious = [each.iou for each in result.confidence if each.iou is not None]
    if not all(map(math.isfinite, ious)):
        raise DataError(
            f"{query.image}: the segmenter's predicted IoUs are not finite: {ious}; set segmenter.dtype to "
            "float32 in the run's recipe.yaml"
        )
    values = [value for each in result.confidence for value in (each.text, each.points) if value is not None]
    if not all(map(math.isfinite, (*values, *scores, result.score or 0.0))):
        raise DataError(
            f"{query.image}: the model's probabilities are not finite: {values}; load it with --dtype float32"
        )
