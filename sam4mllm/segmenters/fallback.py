"""The box fallback: use the mask of a prompt's box alone where the points probably make the mask worse.

Two indicators need no ground truth: the mask has many pixels outside the box, or SAM predicts a lower
IoU for it than for the mask of the box without points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sam4mllm.geometry import Box, SamPrompt, mask_of_box
from sam4mllm.segmenters.base import Embeddings, Segmenter


@dataclass(frozen=True, slots=True)
class BoxFallback:
    """The rule that decides when the mask of the box replaces the mask of box and points; by default, never.

    Attributes:
        margin: The box's mask is used where its predicted IoU is higher by more than this; None turns the rule off.
        outside: The box's mask is used where more than this share of the other mask's pixels is outside the box; None
            turns the rule off.

    Raises:
        ValueError: A value is not a fraction from 0 to 1.
    """

    margin: float | None = None
    outside: float | None = None

    def __post_init__(self) -> None:
        for value in (self.margin, self.outside):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"margin and outside are fractions from 0 to 1, or None; got {self}")

    @property
    def enabled(self) -> bool:
        """Whether any rule is on; if not, the box's masks need not be decoded."""
        return self.margin is not None or self.outside is not None

    def takes_box(self, outside: float, iou: float, box_iou: float) -> bool:
        """Return whether the box's mask is used.

        Args:
            outside: The share of the pixels of the mask of box and points that is outside the box.
            iou: The IoU that SAM predicts for that mask.
            box_iou: The IoU that SAM predicts for the mask of the box without points.
        """
        exceeds_box = self.outside is not None and outside > self.outside
        return exceeds_box or (self.margin is not None and box_iou - iou > self.margin)


def share_outside(mask: torch.Tensor, box: Box) -> float:
    """Compute the share of the pixels of a mask (H, W) bool with centers outside the box; 0 for an empty mask."""
    height, width = mask.shape
    inside = torch.from_numpy(mask_of_box(box, (width, height))).to(mask.device)
    return int((mask & ~inside).sum()) / max(int(mask.sum()), 1)


def segment_with_fallback(
    segmenter: Segmenter, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], fallback: BoxFallback
) -> tuple[list[torch.Tensor], torch.Tensor, tuple[bool, ...]]:
    """Segment (image index, prompt) requests, with the mask of the box where `fallback` uses it.

    Prompts with box and points are decoded with and without the points, from the same embeddings in the same call.

    Returns:
        In the order of the requests: the masks (H, W) bool; their predicted IoUs (N,) float32; whether the points were
        left out.
    """
    with_points = [
        (position, image, prompt.box)
        for position, (image, prompt) in enumerate(requests)
        if prompt.box is not None and prompt.points
    ]
    box_requests = [(image, SamPrompt(box)) for _, image, box in with_points]
    decoded = segmenter.decode(embeddings, [*requests, *box_requests])
    masks, ious = segmenter.masks(decoded), decoded.iou.tolist()
    chosen = list(range(len(requests)))
    for box_position, (position, _, box) in enumerate(with_points, start=len(requests)):
        # The share waits for the device, so it is computed only for the rule that uses it.
        outside = 0.0 if fallback.outside is None else share_outside(masks[position], box)
        if fallback.takes_box(outside, ious[position], ious[box_position]):
            chosen[position] = box_position
    return [masks[index] for index in chosen], decoded.iou[chosen], tuple(index >= len(requests) for index in chosen)
