"""Segmenters without weights: one whose mask is the box of the prompt, for tests, and one that takes no prompts.

`sam4mllm.testing` exports BoxSegmenter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter
from sam4mllm.segmenters.frame import Upsampling


class BoxSegmenter(Segmenter):
    """A segmenter whose mask holds every pixel with its center inside the prompt's box.

    The predicted IoU is 1, or 0 for an empty mask. Images keep their size: the coarse grid is a square of `side` pixels
    with the image in its upper left corner.

    Args:
        side: The longest side of an image, in pixels.
        reach: For a prompt without a box, the mask is the bounding box of the positive points, extended by this many
            pixels in all directions.
        points_cut: Remove from the mask the squares that extend `reach` pixels around the negative points, so that
            points change the mask.
    """

    def __init__(self, side: int = 640, reach: float = 2.0, points_cut: bool = False) -> None:
        self.device = torch.device("cpu")
        self.side = side
        self.reach = reach
        self.points_cut = points_cut

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters."""
        parameters = f"box segmenter, side {self.side}, reach {self.reach}, points cut {self.points_cut}"
        return hashlib.sha256(parameters.encode()).hexdigest()

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Keep the sizes of the images; there are no features.

        Raises:
            ValueError: An image is larger than `side`.
        """
        sizes_wh = tuple((image.shape[1], image.shape[0]) for image in images)
        for size_wh in sizes_wh:
            if max(size_wh) > self.side:
                raise ValueError(f"this BoxSegmenter takes images of up to {self.side} pixels a side; got {size_wh}")
        return Embeddings((torch.zeros(len(images), 1),), sizes_wh)

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        """Decode N prompts; see `Segmenter.decode_points`."""
        centers = torch.arange(self.side) + 0.5
        if boxes_xyxy is None:
            positive = (labels == 1)[..., None]
            low = torch.where(positive, points_xy, torch.inf).amin(dim=1) - self.reach
            high = torch.where(positive, points_xy, -torch.inf).amax(dim=1) + self.reach
            boxes_xyxy = torch.cat([low, high], dim=1)
        x1, y1, x2, y2 = boxes_xyxy[:, :, None].unbind(dim=1)
        masks = ((centers >= y1) & (centers < y2))[:, :, None] & ((centers >= x1) & (centers < x2))[:, None, :]
        if self.points_cut and points_xy.shape[1]:
            near = (centers - points_xy[..., None]).abs() < self.reach
            cut = near[:, :, 1, :, None] & near[:, :, 0, None, :] & (labels == 0)[..., None, None]
            masks = masks & ~cut.any(dim=1)
        iou = masks.flatten(1).any(dim=1).float()
        return DecodedMasks(masks.float() * 2 - 1, iou, index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the identity, cropped to the image."""
        width, height = size_wh
        identity = torch.eye(self.side)
        return Upsampling(identity[:height], identity[:width])


class NoSegmenter(Segmenter):
    """Takes the place of a segmenter in a pipeline that is asked for boxes or text alone.

    Args:
        device: The device of the pipeline.
    """

    fingerprint = "none"

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> NoReturn:
        """Raise: there is nothing to embed for."""
        raise _without_segmenter()

    def decode_points(self, *arguments: object, **options: object) -> NoReturn:
        """Raise: there is nothing to decode with."""
        raise _without_segmenter()

    def upsampling(self, size_wh: tuple[int, int]) -> NoReturn:
        """Raise: there are no masks."""
        raise _without_segmenter()


def _without_segmenter() -> NotImplementedError:
    return NotImplementedError("this pipeline was loaded without a segmenter, for boxes and text alone")
