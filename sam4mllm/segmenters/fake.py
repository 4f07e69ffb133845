"""BoxSegmenter: a segmenter without a model, whose mask is the box of the prompt. For tests and for trying code out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import Decoded, Embeddings, Segmenter
from sam4mllm.segmenters.frame import Upsampling


class BoxSegmenter(Segmenter):
    """The mask is every pixel whose centre lies in the prompt's box.

    Without a box it is the tight box of the positive points, grown by `reach` pixels. With `points_cut`, the squares of
    `reach` pixels around the negative points are taken out of the mask, so that points matter. The guessed IoU is 1 for
    a mask with pixels and 0 for an empty one.

    Its coarse grid is a square of `side` pixels that holds each image at its own size.
    """

    def __init__(self, side: int = 640, reach: float = 2.0, points_cut: bool = False) -> None:
        self.device = torch.device("cpu")
        self.side = side
        self.reach = reach
        self.points_cut = points_cut

    @property
    def fingerprint(self) -> str:
        parameters = f"box segmenter, side {self.side}, reach {self.reach}, points cut {self.points_cut}"
        return hashlib.sha256(parameters.encode()).hexdigest()

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Keeps the sizes alone.

        Raises:
            ValueError: an image larger than `side`.
        """
        sizes_wh = tuple((image.shape[1], image.shape[0]) for image in images)
        for size_wh in sizes_wh:
            if max(size_wh) > self.side:
                raise ValueError(f"this BoxSegmenter takes images up to {self.side} pixels a side; got {size_wh}")
        return Embeddings((torch.zeros(len(images), 1),), sizes_wh)

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> Decoded:
        """See `Segmenter.decode_points`."""
        centres = torch.arange(self.side) + 0.5
        if boxes_xyxy is None:
            positive = (labels == 1)[..., None]
            low = torch.where(positive, points_xy, torch.inf).amin(dim=1) - self.reach
            high = torch.where(positive, points_xy, -torch.inf).amax(dim=1) + self.reach
            boxes_xyxy = torch.cat([low, high], dim=1)
        x1, y1, x2, y2 = boxes_xyxy[:, :, None].unbind(dim=1)
        masks = ((centres >= y1) & (centres < y2))[:, :, None] & ((centres >= x1) & (centres < x2))[:, None, :]
        if self.points_cut and points_xy.shape[1]:
            near = (centres - points_xy[..., None]).abs() < self.reach
            cut = near[:, :, 1, :, None] & near[:, :, 0, None, :] & (labels == 0)[..., None, None]
            masks = masks & ~cut.any(dim=1)
        iou = masks.flatten(1).any(dim=1).float()
        return Decoded(masks.float() * 2 - 1, iou, index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """The identity, cut to the image."""
        width, height = size_wh
        identity = torch.eye(self.side)
        return Upsampling(identity[:height], identity[:width])
