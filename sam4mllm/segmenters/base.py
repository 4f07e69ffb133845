"""Segmenter: what turns images and prompts into masks, whatever the model. Images are embedded once.

A segmenter knows nothing about text or about the truth. Coordinates come in pixels of the original image, masks go
out at its size, on the segmenter's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.frame import Upsampling

_PIXELS_AT_ONCE = 2**27
"""Pixels of masks that are brought to an image's size together: as logits, half a gigabyte."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """P embedded images: feature maps, each (P, ...), on the segmenter's device, and the images' original sizes.

    Raises:
        ValueError: a feature map of another number of images than there are sizes.
    """

    features: tuple[torch.Tensor, ...]
    sizes_wh: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for feature in self.features:
            if feature.shape[0] != len(self.sizes_wh):
                raise ValueError(f"features of {feature.shape[0]} images, but sizes of {len(self.sizes_wh)}")

    def __len__(self) -> int:
        return len(self.sizes_wh)

    def __getitem__(self, index: int | slice) -> Embeddings:
        """One image (P = 1) or a run of them."""
        part = index if isinstance(index, slice) else slice(index, index + 1 or None)
        return Embeddings(tuple(feature[part] for feature in self.features), self.sizes_wh[part])

    @staticmethod
    def concat(parts: Sequence[Embeddings]) -> Embeddings:
        """The images of `parts` one after the other; all parts come from one segmenter."""
        features = tuple(torch.cat(maps) for maps in zip(*(part.features for part in parts), strict=True))
        return Embeddings(features, tuple(size_wh for part in parts for size_wh in part.sizes_wh))


@dataclass(frozen=True, slots=True)
class Decoded:
    """One mask for each of N prompts, as the model gives it.

    low_logits (N, h, w) float32, on the model's coarse grid; iou (N,) float32, the model's own guess of the mask's IoU;
    index (N,) int64, the image of each prompt; sizes_wh, the original sizes of those images.
    """

    low_logits: torch.Tensor
    iou: torch.Tensor
    index: torch.Tensor
    sizes_wh: tuple[tuple[int, int], ...]


class Segmenter(Protocol):
    """What a segmenter must do (`embed`, `decode_points`, `upsampling`) and what follows from it (`decode`, `masks`).

    `fingerprint` names the weights, architecture and number type: two segmenters with equal fingerprints give equal
    masks.
    """

    device: torch.device

    @property
    def fingerprint(self) -> str: ...

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Embeds images (H, W, 3) uint8 RGB, of any sizes, as one device batch."""
        ...

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> Decoded:
        """One mask for each of N prompts that all have the same shape, as one device batch.

        Args:
            embeddings: The images.
            index: (N,) int64, the image of each prompt.
            boxes_xyxy: (N, 4) float32 in pixels of the prompt's image, or None for prompts without a box.
            points_xy: (N, K, 2) float32 in pixels of the prompt's image; K may be 0 if there are boxes.
            labels: (N, K) int64, 1 on the object and 0 off it.
        """
        ...

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """The way from `Decoded.low_logits` to the pixels of an image of `size_wh`, on the segmenter's device."""
        ...

    def decode(
        self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], batch_size: int = 64
    ) -> Decoded:
        """One mask for each (image, prompt), in the order of `requests`; prompts of equal shape share device batches.

        Raises:
            IndexError: a request for an image that `embeddings` does not hold.
        """
        for image, _ in requests:
            if not 0 <= image < len(embeddings):
                raise IndexError(f"a prompt for image {image}, but {len(embeddings)} images are embedded")
        buckets: dict[tuple[bool, int], list[int]] = {}
        for place, (_, prompt) in enumerate(requests):
            buckets.setdefault((prompt.box is not None, len(prompt.points)), []).append(place)
        places: list[int] = []
        parts: list[Decoded] = []
        for bucket in buckets.values():
            # Neighbours of one image share its features in the device batch.
            bucket.sort(key=lambda place: requests[place][0])
            for start in range(0, len(bucket), batch_size):
                chunk = bucket[start : start + batch_size]
                parts.append(self._decode_chunk(embeddings, [requests[place] for place in chunk]))
                places.extend(chunk)
        if not parts:
            side = torch.zeros((0, 1, 1), device=self.device)
            return Decoded(
                side, side[:, 0, 0], torch.zeros(0, dtype=torch.int64, device=self.device), embeddings.sizes_wh
            )
        order = torch.empty(len(places), dtype=torch.int64)
        order[torch.tensor(places)] = torch.arange(len(places))
        order = order.to(self.device)
        return Decoded(
            torch.cat([part.low_logits for part in parts])[order],
            torch.cat([part.iou for part in parts])[order],
            torch.cat([part.index for part in parts])[order],
            embeddings.sizes_wh,
        )

    def _decode_chunk(self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]]) -> Decoded:
        prompts = [prompt for _, prompt in requests]
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        points = [[(point.x, point.y) for point in prompt.points] for prompt in prompts]
        labels = [[point.label for point in prompt.points] for prompt in prompts]
        count = len(prompts)
        return self.decode_points(
            embeddings,
            torch.tensor([image for image, _ in requests], device=self.device),
            torch.tensor(boxes, dtype=torch.float32, device=self.device) if boxes else None,
            torch.tensor(points, dtype=torch.float32, device=self.device).reshape(count, -1, 2),
            torch.tensor(labels, dtype=torch.int64, device=self.device).reshape(count, -1),
        )

    def masks(self, decoded: Decoded) -> list[torch.Tensor]:
        """The mask (H, W) bool of each prompt, at its image's original size, on the segmenter's device."""
        masks: list[torch.Tensor] = [torch.empty(0)] * len(decoded.index)
        images = decoded.index.tolist()
        for image in sorted(set(images)):
            places = [place for place, other in enumerate(images) if other == image]
            width, height = decoded.sizes_wh[image]
            upsampling, at_once = self.upsampling((width, height)), max(1, _PIXELS_AT_ONCE // (width * height))
            for start in range(0, len(places), at_once):
                chunk = places[start : start + at_once]
                for place, mask in zip(chunk, upsampling.masks(decoded.low_logits[chunk]), strict=True):
                    masks[place] = mask
        return masks
