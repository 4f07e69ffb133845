"""Result: what a pipeline answers about one phrase. This module computes nothing but the union and an image of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from sam4mllm.data.images import ImageInput, as_rgb
from sam4mllm.data.predictions import Confidence
from sam4mllm.geometry import SamPrompt

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Result:
    """What one phrase means in one image.

    masks: bool (N, H, W) at the image's own size, on the pipeline's device; N = 0 unless status is "ok".
    prompts: the N prompts that the model's answer makes, in pixels of the original image.
    scores: float32 (N,), from 0 to 1: the probability that each mask is right (IoU > 0.5); not calibrated, SAM's own
        guess of its IoU.
    status: "ok"; "no_object", the model said that nothing fits; "malformed", its answer could not be read.
    answer: the text that the model wrote. reason: why it could not be read, else None.
    evidence: what speaks for each of the N masks, or, as the only one, for "no_object".
    score: how sure the whole answer is, from 0 to 1, or None; see `calibration.scores_of`.
    box_alone: for each of the N masks, whether its prompt's points were left out because they seemed to hurt; empty in
        a pipeline that does not fall back on the box.
    """

    masks: torch.Tensor
    prompts: list[SamPrompt]
    scores: torch.Tensor
    status: Literal["ok", "no_object", "malformed"]
    answer: str
    reason: str | None = None
    confidence: tuple[Confidence, ...] = ()
    score: float | None = None
    box_alone: tuple[bool, ...] = ()

    @property
    def mask(self) -> torch.Tensor:
        """The union of the masks, bool (H, W), on their device; all False for N = 0."""
        return self.masks.any(dim=0)

    def draw(self, image: ImageInput, long_side: int = 0) -> Image.Image:
        """The image with masks, boxes and points over it; see `render.overlay`."""
        from sam4mllm.viz.drawing import overlay

        return overlay(as_rgb(image), list(self.masks.cpu().numpy()), self.prompts, long_side=long_side)
