"""Segmenter: the base class of all models that turn images and prompts into masks, with the tensors they exchange.

An image is embedded once and decoded with any number of prompts. Prompts are in pixels of the original image; masks
have its size and stay on the segmenter's device.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.segmenters.frame import Upsampling
from sam4mllm.utils.memory import DeviceBatch

_PROMPTS_AT_ONCE = 64
_ADVICE = "free memory on the device, or use a smaller segmenter"

_MAX_UPSAMPLED_PIXELS = 2**27
"""Mask pixels that are upsampled in one step: their float32 logits take half a gigabyte."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """P embedded images: feature maps (P, ...) on the segmenter's device, and the original sizes of the images.

    Raises:
        ValueError: A feature map has another number of images than there are sizes.
    """

    features: tuple[torch.Tensor, ...]
    sizes_wh: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for feature in self.features:
            if feature.shape[0] != len(self.sizes_wh):
                raise ValueError(
                    f"a feature map has {feature.shape[0]} images, but there are {len(self.sizes_wh)} sizes"
                )

    def __len__(self) -> int:
        return len(self.sizes_wh)

    def __getitem__(self, index: int | slice) -> Embeddings:
        """Return one image (P = 1) or a slice of the images."""
        part = index if isinstance(index, slice) else slice(index, index + 1 or None)
        return Embeddings(tuple(feature[part] for feature in self.features), self.sizes_wh[part])

    @staticmethod
    def concat(parts: Sequence[Embeddings]) -> Embeddings:
        """Concatenate embeddings that one segmenter made, in the order of `parts`."""
        features = tuple(torch.cat(maps) for maps in zip(*(part.features for part in parts), strict=True))
        return Embeddings(features, tuple(size_wh for part in parts for size_wh in part.sizes_wh))


@dataclass(frozen=True, slots=True)
class DecodedMasks:
    """One low-resolution mask for each of N prompts.

    Attributes:
        low_res_logits: (N, h, w) float32 on the model's coarse grid; positive on the object. On the padding of the
            model's input, which no pixel of the image depends on, they may be 0.
        iou: (N,) float32, the IoU that the model predicts for each mask.
        index: (N,) int64, the image of each prompt.
        sizes_wh: The original sizes of the images.
    """

    low_res_logits: torch.Tensor
    iou: torch.Tensor
    index: torch.Tensor
    sizes_wh: tuple[tuple[int, int], ...]


class Segmenter(ABC):
    """A promptable segmentation model.

    A subclass sets `device` and implements `fingerprint`, `embed`, `decode_points` and `upsampling`; `decode` and
    `masks` are built from these. One whose mask decoder takes prompt tokens as embeddings implements `not_a_point` and
    `decode_embedded`, too; `decode_tokens` is built from that.
    """

    device: torch.device

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """An identifier of weights, architecture and dtype: segmenters with equal fingerprints give equal masks."""

    @abstractmethod
    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Embed images (H, W, 3) uint8 RGB of any sizes in one device batch."""

    @abstractmethod
    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        """Decode one mask for each of N prompts of equal shape in one device batch.

        Args:
            embeddings: The images.
            index: (N,) int64, the image of each prompt.
            boxes_xyxy: (N, 4) float32 in pixels of the prompt's image, or None for prompts without boxes.
            points_xy: (N, K, 2) float32 in pixels of the prompt's image; K may be 0 if there are boxes.
            labels: (N, K) int64, 1 for points on the object and 0 for points off it.
        """

    @property
    def not_a_point(self) -> torch.Tensor:
        """SAM's embedding of a prompt token that is not a point, (C,) float32.

        Raises:
            ModelError: The mask decoder takes no prompt tokens as embeddings.
        """
        raise self._without_tokens()

    def decode_embedded(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> DecodedMasks:
        """Decode one mask for each of N prompts, given as embeddings, in one device batch.

        Args:
            embeddings: The images.
            index: (N,) int64, the image of each prompt.
            boxes_xyxy: (N, 4) float32 in pixels of the prompt's image, for prompts of a box and tokens; None for tokens
                alone.
            tokens: (N, K, C), sparse prompt tokens in the place of the prompt encoder's, after those of the box.

        Raises:
            ModelError: The mask decoder takes no prompt tokens as embeddings.
        """
        raise self._without_tokens()

    def _without_tokens(self) -> ModelError:
        return ModelError(
            f"the segmenter {self.name} takes no prompts as embeddings; use a segment_anything checkpoint or "
            "transformers' SamModel, or set method.prompt: box"
        )

    @property
    def name(self) -> str:
        """The name of the model's class, for messages."""
        return type(self).__name__

    @abstractmethod
    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the interpolation from `DecodedMasks.low_res_logits` to an image of `size_wh`, on the device."""

    @cached_property
    def _prompts_at_once(self) -> DeviceBatch:
        return DeviceBatch(_PROMPTS_AT_ONCE, "prompts", _ADVICE)

    def decode(
        self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]], batch_size: int | None = None
    ) -> DecodedMasks:
        """Decode one mask for each (image index, prompt), in the order of `requests`.

        `batch_size` prompts are decoded at once; None begins with 64 and keeps a size that was reduced because memory
        ran out.

        Raises:
            IndexError: A request is about an image that `embeddings` does not hold.
            DeviceMemoryError: Memory does not suffice for one prompt.
        """
        return self._decode_in_buckets(
            embeddings,
            [image for image, _ in requests],
            [(prompt.box is not None, len(prompt.points)) for _, prompt in requests],
            lambda part: self._decode_batch(embeddings, [requests[position] for position in part]),
            batch_size,
        )

    def decode_tokens(
        self,
        embeddings: Embeddings,
        requests: Sequence[tuple[int, Box | None, torch.Tensor]],
        batch_size: int | None = None,
    ) -> DecodedMasks:
        """Decode one mask for each (image index, box or None, prompt tokens (K, C)), as `decode` does for prompts.

        Raises:
            IndexError, DeviceMemoryError: As `decode`.
            ModelError: As `decode_embedded`.
        """

        def decode_part(part: Sequence[int]) -> DecodedMasks:
            images, boxes, tokens = zip(*(requests[position] for position in part), strict=True)
            return self.decode_embedded(
                embeddings,
                torch.tensor(images, device=self.device),
                None if boxes[0] is None else torch.tensor(boxes, dtype=torch.float32, device=self.device),
                torch.stack([each.to(self.device) for each in tokens]),
            )

        return self._decode_in_buckets(
            embeddings,
            [image for image, _, _ in requests],
            [(box is not None, tokens.shape) for _, box, tokens in requests],
            decode_part,
            batch_size,
        )

    def _decode_in_buckets(
        self,
        embeddings: Embeddings,
        images: Sequence[int],
        shapes: Sequence[Hashable],
        decode_part: Callable[[Sequence[int]], DecodedMasks],
        batch_size: int | None,
    ) -> DecodedMasks:
        """Decode requests, each about the image of its index, by `decode_part`, which takes indices of requests.

        The requests of a part have equal shapes. Raises the errors of `decode`.
        """
        for image in images:
            if not 0 <= image < len(embeddings):
                raise IndexError(f"a prompt is for image {image}, but only {len(embeddings)} images are embedded")
        if not images:
            empty = torch.zeros((0, 1, 1), device=self.device)
            index = torch.zeros(0, dtype=torch.int64, device=self.device)
            return DecodedMasks(empty, empty[:, 0, 0], index, embeddings.sizes_wh)
        # 1. Group the requests by shape (box or not, number of points): a batch is one tensor without padding.
        buckets: dict[Hashable, list[int]] = {}
        for position, shape in enumerate(shapes):
            buckets.setdefault(shape, []).append(position)
        # 2. Decode each group in batches, image by image: prompts of one image share its features in the decoder.
        batch = self._prompts_at_once if batch_size is None else DeviceBatch(batch_size, "prompts", _ADVICE)
        positions: list[int] = []
        parts: list[DecodedMasks] = []
        for bucket in buckets.values():
            bucket.sort(key=lambda position: images[position])
            parts += batch.map(bucket, decode_part)
            positions += bucket
        # 3. Restore the order of the requests, by the inverse of the permutation `positions`.
        order = torch.empty(len(positions), dtype=torch.int64)
        order[torch.tensor(positions)] = torch.arange(len(positions))
        order = order.to(self.device)
        return DecodedMasks(
            torch.cat([part.low_res_logits for part in parts])[order],
            torch.cat([part.iou for part in parts])[order],
            torch.cat([part.index for part in parts])[order],
            embeddings.sizes_wh,
        )

    def _decode_batch(self, embeddings: Embeddings, requests: Sequence[tuple[int, SamPrompt]]) -> DecodedMasks:
        """Decode requests of equal shape in one device batch."""
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

    def masks(self, decoded: DecodedMasks) -> list[torch.Tensor]:
        """Upsample decoded masks to (H, W) bool, each at its image's original size, on the segmenter's device."""
        masks: list[torch.Tensor] = [torch.empty(0)] * len(decoded.index)
        images = decoded.index.tolist()
        for image in sorted(set(images)):
            positions = [position for position, other in enumerate(images) if other == image]
            width, height = decoded.sizes_wh[image]
            upsampling, step = self.upsampling((width, height)), max(1, _MAX_UPSAMPLED_PIXELS // (width * height))
            for start in range(0, len(positions), step):
                chunk = positions[start : start + step]
                for position, mask in zip(chunk, upsampling.masks(decoded.low_res_logits[chunk]), strict=True):
                    masks[position] = mask
        return masks


def weights_fingerprint(facts: object, weights: Mapping[str, torch.Tensor]) -> str:
    """Compute SHA-256 over the names, shapes and values of weights and over `facts` that they do not determine.

    Args:
        facts: Plain values such as the dtype and the number of heads; they enter by their `repr`.
        weights: A state dict; values enter as float32.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
