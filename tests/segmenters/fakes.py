"""A segmenter whose masks get worse with negative points, for tests of the fallback to the box's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.base import DecodedMasks, Embeddings
from sam4mllm.segmenters.fake import BoxSegmenter


class MisledSegmenter(BoxSegmenter):
    """A BoxSegmenter whose predicted IoU is 0.9 for a box and 0.95 for a box with positive points.

    With a negative point the mask covers the full image, with the predicted IoU `pointed_iou`. `decoded` holds the
    number of prompts of each call.
    """

    def __init__(self, pointed_iou: float = 0.6) -> None:
        super().__init__()
        self.pointed_iou = pointed_iou
        self.decoded: list[int] = []

    def decode(
        self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], batch_size: int | None = None
    ) -> DecodedMasks:
        self.decoded.append(len(requests))
        return super().decode(embeddings, requests, batch_size)

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        masks = super().decode_points(embeddings, index, boxes_xyxy, points_xy, labels)
        is_misled = (labels == 0).any(dim=1)
        iou = torch.full((len(index),), 0.95 if labels.shape[1] else 0.9)
        iou[is_misled] = self.pointed_iou
        low_res_logits = masks.low_res_logits.clone()
        low_res_logits[is_misled] = 1
        return replace(masks, low_res_logits=low_res_logits, iou=iou)
