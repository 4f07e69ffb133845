"""TransformersSam: a segmenter of transformers' SAM models: SAM, SAM-HQ, SAM2, the tracker of SAM3, and EdgeTAM.

`families.py` holds what differs between them. As in `segment_anything.py`, each prompt encoder adds 0.5 to coordinates
of its input square; our coordinates are continuous, so 0.5 is subtracted after scaling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter, weights_fingerprint
from sam4mllm.segmenters.families import SamFamily
from sam4mllm.segmenters.frame import Upsampling, UpsamplingCache

# Entries of a config that are not part of the architecture: its source, and the library version that wrote it.
_PROVENANCE_KEYS = {"_name_or_path", "architectures", "dtype", "model_type", "transformers_version"}


class TransformersSam(Segmenter):
    """A segmenter around a model of transformers.

    The image encoder and the mask decoder compute in `dtype`, the prompt encoder in float32: in bfloat16 a coordinate
    would be off by pixels. The model is moved, cast and frozen in place and must not be changed afterwards.

    Args:
        model: An instance of the family's class.
        family: Its row of `families.FAMILIES`.
        device: The device that it computes on.
        dtype: The dtype that it computes in: torch.float32, torch.bfloat16 or torch.float16.
        pixel_statistics: Mean and standard deviation of the channels from 0 to 1; None for the family's.
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
        self._upsamplings = UpsamplingCache(self._frame, 4 * int(encoder.image_embedding_size[0]), self.device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the configuration, the frame, the pixel statistics and the dtype."""
        statistics = [self._mean.flatten().tolist(), self._std.flatten().tolist()]
        configuration = _architecture(self.model.config.to_dict())
        facts = (self.family.model_class, str(self.dtype), self._frame, statistics, configuration)
        return weights_fingerprint(facts, self.model.state_dict())

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Compute the image encoder's input (P, 3, side, side) float32; raises the errors of `embed`."""
        return self._frame.pixels(images, self._mean, self._std)

    @torch.inference_mode()
    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Embed images (H, W, 3) uint8 RGB in one device batch; see `Segmenter.embed`.

        Raises:
            ValueError: There are no images, or one is not (H, W, 3) uint8.
        """
        embeddings = self.model.get_image_embeddings(self.pixels(images).to(self.dtype))
        features = tuple(feature.to(self.dtype) for feature in self.family.embeddings.keep(embeddings))
        return Embeddings(features, tuple((image.shape[1], image.shape[0]) for image in images))

    @torch.inference_mode()
    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        """Decode N prompts to the mask with the highest predicted IoU of each; see `Segmenter.decode_points`."""
        scale = self._frame.prompt_scale_xy(embeddings.sizes_wh, index)
        axes = _axes(index)
        points = points_xy * scale[:, None] - 0.5
        has_points = points.shape[1] > 0
        boxes = None if boxes_xyxy is None else boxes_xyxy * scale.repeat(1, 2) - 0.5
        sparse, dense = self.model.prompt_encoder(
            input_points=points.unflatten(0, axes) if has_points else None,
            input_labels=labels.unflatten(0, axes) if has_points else None,
            input_boxes=None if boxes is None else boxes.unflatten(0, axes),
            input_masks=None,
        )
        return self._decode_sparse(embeddings, index, sparse, dense)

    @property
    def name(self) -> str:
        return self.family.model_class

    @property
    def not_a_point(self) -> torch.Tensor:
        if not self.family.takes_tokens:
            raise self._without_tokens()
        weight: torch.Tensor = self.model.prompt_encoder.not_a_point_embed.weight
        return weight[0].float()

    @torch.inference_mode()
    def decode_embedded(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> DecodedMasks:
        """Decode N embedded prompts to the best mask of each, as `decode_points`; see `Segmenter.decode_embedded`."""
        if not self.family.takes_tokens:
            raise self._without_tokens()
        # Without boxes, zeros stand for them: the prompt encoder returns the embedding of "no mask" with them.
        axes, scale = _axes(index), self._frame.prompt_scale_xy(embeddings.sizes_wh, index)
        boxes = torch.zeros(len(index), 4, device=self.device) if boxes_xyxy is None else boxes_xyxy
        of_boxes, dense = self.model.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=(boxes * scale.repeat(1, 2) - 0.5).unflatten(0, axes),
            input_masks=None,
        )
        sparse = tokens.to(of_boxes).unflatten(0, axes)
        if boxes_xyxy is not None:
            sparse = torch.cat([of_boxes, sparse], dim=2)
        return self._decode_sparse(embeddings, index, sparse, dense)

    def _decode_sparse(
        self, embeddings: Embeddings, index: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> DecodedMasks:
        """Decode prompts, given by their prompt tokens, to the mask with the highest predicted IoU of each."""
        axes, count = _axes(index), len(index)
        images = torch.unique(index) if axes[0] == 1 else index
        features = tuple(feature[images] for feature in embeddings.features)
        masks, iou = self.model.mask_decoder(
            image_positional_embeddings=self._position.expand(axes[0], -1, -1, -1),
            sparse_prompt_embeddings=sparse.to(self.dtype),
            dense_prompt_embeddings=dense.to(self.dtype),
            multimask_output=True,
            **self.family.embeddings.decoder_arguments(features),
        )[:2]
        masks, iou = masks.flatten(0, 1), iou.flatten(0, 1)
        prompt, best = torch.arange(count, device=self.device), iou.argmax(dim=1)
        return DecodedMasks(masks[prompt, best].float(), iou[prompt, best].float(), index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the interpolation to an image of `size_wh`; see `Segmenter.upsampling`."""
        return self._upsamplings.get(size_wh)


def _axes(index: torch.Tensor) -> tuple[int, int]:
    """Return the axes images x prompts of a batch in transformers: N prompts of one image, or N images of one each."""
    count = len(index)
    return (1, count) if len(torch.unique(index)) == 1 else (count, 1)


def _architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Remove `_PROVENANCE_KEYS` from a configuration and sort its keys, on every level."""
    return {
        name: _architecture(value) if isinstance(value, Mapping) else value
        for name, value in sorted(configuration.items(), key=lambda item: str(item[0]))
        if name not in _PROVENANCE_KEYS
    }
