"""transformers' SAM family as a Segmenter: Sam, SAM-HQ, SAM2, the tracker of SAM3 and EdgeTAM.

What differs between them stands in `families.py`. As in `segment_anything.py`, each of them adds half a pixel of its
input square to every coordinate; ours are continuous, so the half is taken off again after scaling. This module reads
no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import Decoded, Embeddings, Segmenter
from sam4mllm.segmenters.families import SamFamily
from sam4mllm.segmenters.fingerprint import fingerprint_of
from sam4mllm.segmenters.frame import Upsampling, Upsamplings

# What a config holds beside facts about the model: where it came from, and what wrote it.
_NOT_THE_MODEL = {"_name_or_path", "architectures", "dtype", "model_type", "transformers_version"}


class TransformersSam(Segmenter):
    """A model of transformers' SAM family.

    The image encoder and the mask decoder compute in `dtype`, prompts in float32: in bfloat16 a coordinate would be off
    by pixels. The model is changed in place (moved, cast, frozen) and must not change afterwards.

    Args:
        model: An instance of the family's class.
        family: Its row of `families.FAMILIES`.
        device: Where it computes.
        dtype: torch.float32, torch.bfloat16 or torch.float16.
        pixel_statistics: Mean and standard deviation of the channels on the scale of 0 to 1; None for the family's.
    """

    def __init__(
        self,
        model: Any,
        family: SamFamily,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.family = family
        self.model: Any = model.to(self.device, torch.float32).eval().requires_grad_(False)
        with torch.inference_mode():
            self._position = model.get_image_wide_positional_embeddings().to(dtype)
        self.model.vision_encoder.to(dtype)
        self.model.mask_decoder.to(dtype)
        mean, std = pixel_statistics or family.pixel_statistics
        self._mean, self._std = (torch.tensor(part, device=self.device)[:, None, None] * 255 for part in (mean, std))
        encoder = model.prompt_encoder
        self._frame = family.frame(int(encoder.input_image_size))
        self._upsamplings = Upsamplings(self._frame, 4 * int(encoder.image_embedding_size[0]), self.device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and values of the weights, the configuration, the frame and the number type."""
        statistics = [self._mean.flatten().tolist(), self._std.flatten().tolist()]
        configuration = _facts(self.model.config.to_dict())
        told = (self.family.model_class, str(self.dtype), self._frame, statistics, configuration)
        return fingerprint_of(told, self.model.state_dict())

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """What the image encoder sees of the images: (P, 3, side, side) float32. Raises as `embed` does."""
        return self._frame.pixels(images, self._mean, self._std)

    @torch.inference_mode()
    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """See `Segmenter.embed`.

        Raises:
            ValueError: an image that is not (H, W, 3) uint8.
        """
        given = self.model.get_image_embeddings(self.pixels(images).to(self.dtype))
        features = tuple(feature.to(self.dtype) for feature in self.family.embeddings.keep(given))
        return Embeddings(features, tuple((image.shape[1], image.shape[0]) for image in images))

    @torch.inference_mode()
    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> Decoded:
        """See `Segmenter.decode_points`. Of the several masks, the one with the highest predicted IoU."""
        # transformers' axes are images x prompts: N prompts of one image, or N images of one prompt each.
        images = torch.unique(index)
        count, one = len(index), len(images) == 1
        axes = (1, count) if one else (count, 1)
        features = tuple(feature[images if one else index] for feature in embeddings.features)
        scale = self._frame.scale_xy(embeddings.sizes_wh).to(self.device)[index]
        points = points_xy * scale[:, None] - 0.5
        with_points = points.shape[1] > 0
        boxes = None if boxes_xyxy is None else boxes_xyxy * scale.repeat(1, 2) - 0.5
        sparse, dense = self.model.prompt_encoder(
            input_points=points.unflatten(0, axes) if with_points else None,
            input_labels=labels.unflatten(0, axes) if with_points else None,
            input_boxes=None if boxes is None else boxes.unflatten(0, axes),
            input_masks=None,
        )
        masks, iou = self.model.mask_decoder(
            image_positional_embeddings=self._position.expand(axes[0], -1, -1, -1),
            sparse_prompt_embeddings=sparse.to(self.dtype),
            dense_prompt_embeddings=dense.to(self.dtype),
            multimask_output=True,
            **self.family.embeddings.decoder_arguments(features),
        )[:2]
        masks, iou = masks.flatten(0, 1), iou.flatten(0, 1)
        prompt, best = torch.arange(count, device=self.device), iou.argmax(dim=1)
        return Decoded(masks[prompt, best].float(), iou[prompt, best].float(), index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """See `Segmenter.upsampling`."""
        return self._upsamplings.of(size_wh)


def _facts(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what says nothing of the model, in the order of its names, on every level."""
    return {
        name: _facts(value) if isinstance(value, Mapping) else value
        for name, value in sorted(configuration.items(), key=lambda item: str(item[0]))
        if name not in _NOT_THE_MODEL
    }
