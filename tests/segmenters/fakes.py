"""A segmenter that points can lead astray, for the tests of the box's fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.base import Decoded, Embeddings
from sam4mllm.segmenters.fake import BoxSegmenter


class Straying(BoxSegmenter):
    """The mask of a box is the box, of predicted IoU 0.9, and with positive points it is no other, of 0.95.

    A negative point makes it the whole canvas, of `pointed_iou`. `decoded` has the number of prompts of each call.
    """

    def __init__(self, pointed_iou: float = 0.6) -> None:
        super().__init__()
        self.pointed_iou = pointed_iou
        self.decoded: list[int] = []

    def decode(
        self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], batch_size: int = 64
    ) -> Decoded:
        self.decoded.append(len(requests))
        return super().decode(embeddings, requests, batch_size)

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> Decoded:
        found = super().decode_points(embeddings, index, boxes_xyxy, points_xy, labels)
        astray = (labels == 0).any(dim=1)
        iou = torch.full((len(index),), 0.95 if labels.shape[1] else 0.9)
        iou[astray] = self.pointed_iou
        low_logits = found.low_logits.clone()
        low_logits[astray] = 1
        return replace(found, low_logits=low_logits, iou=iou)
