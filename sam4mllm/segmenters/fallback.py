"""The box's fallback: where the points of a prompt seem to hurt, the mask of its box alone is taken.

Two signs can be seen: the mask leaves the box, or SAM itself thinks less of it than of the box's. This module knows no
truth, and not the text that a prompt came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sam4mllm.geometry import Box, SamPrompt, mask_of_box
from sam4mllm.segmenters.base import Embeddings, Segmenter


@dataclass(frozen=True, slots=True)
class BoxFallback:
    """When the mask of the box alone is taken in place of that of box and points; the default is never.

    margin: where its predicted IoU is above the other's by more than this, a fraction; None for never.
    outside: where more than this share of the other mask's pixels lies outside the box; None for never.

    Raises:
        ValueError: a number that is no fraction from 0 to 1.
    """

    margin: float | None = None
    outside: float | None = None

    def __post_init__(self) -> None:
        for value in (self.margin, self.outside):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"margin and outside are fractions from 0 to 1, or None; got {self}")

    @property
    def is_on(self) -> bool:
        """Whether it can ever take a box's mask; if not, none need be drawn."""
        return self.margin is not None or self.outside is not None

    def takes_box(self, outside: float, iou: float, box_iou: float) -> bool:
        """Whether the box's mask is taken.

        Args:
            outside: the share of the pixels of the mask of box and points that lies outside the box.
            iou: the IoU that SAM predicts for that mask.
            box_iou: the one that it predicts for the mask of the box alone.
        """
        leaves = self.outside is not None and outside > self.outside
        return leaves or (self.margin is not None and box_iou - iou > self.margin)


def share_outside(mask: torch.Tensor, box: Box) -> float:
    """The share of the pixels of a mask (H, W) bool whose centres lie outside the box; 0 for an empty mask."""
    height, width = mask.shape
    inside = torch.from_numpy(mask_of_box(box, (width, height))).to(mask.device)
    return int((mask & ~inside).sum()) / max(int(mask.sum()), 1)


def segment_guarded(
    segmenter: Segmenter, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], fallback: BoxFallback
) -> tuple[list[torch.Tensor], torch.Tensor, tuple[bool, ...]]:
    """The masks of (image, prompt) requests, in their order, the box's where `fallback` takes it.

    Prompts with box and points are decoded with and without the points, from the same embeddings in the same call.

    Returns:
        The masks (H, W) bool; their predicted IoUs (N,) float32; for each, whether the points were left out.
    """
    guarded = [
        (place, image, prompt.box)
        for place, (image, prompt) in enumerate(requests)
        if prompt.box is not None and prompt.points
    ]
    decoded = segmenter.decode(embeddings, [*requests, *((image, SamPrompt(box)) for _, image, box in guarded)])
    masks, ious = segmenter.masks(decoded), decoded.iou.tolist()
    chosen = list(range(len(requests)))
    for alone, (place, _, box) in enumerate(guarded, start=len(requests)):
        # The share is a look at every pixel, from the device: only where it counts.
        outside = 0.0 if fallback.outside is None else share_outside(masks[place], box)
        if fallback.takes_box(outside, ious[place], ious[alone]):
            chosen[place] = alone
    return [masks[index] for index in chosen], decoded.iou[chosen], tuple(index >= len(requests) for index in chosen)
