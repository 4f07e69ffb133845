"""A segmenter whose masks get worse with negative points, for tests of what points change."""

from __future__ import annotations

from dataclasses import replace

import torch

from sam4mllm.segmenters.base import DecodedMasks, Embeddings
from sam4mllm.segmenters.fake import BoxSegmenter


class MisledSegmenter(BoxSegmenter):
    """A BoxSegmenter whose mask covers the full image where a prompt has a negative point."""

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        masks = super().decode_points(embeddings, index, boxes_xyxy, points_xy, labels)
        low_res_logits = masks.low_res_logits.clone()
        low_res_logits[(labels == 0).any(dim=1)] = 1
        return replace(masks, low_res_logits=low_res_logits)
