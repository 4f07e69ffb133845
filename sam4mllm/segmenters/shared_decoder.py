"""SharedDecoder: SAM's mask decoder for many prompts per image, with the work on the image shared between prompts.

segment_anything's `MaskDecoder.predict_masks` repeats the image for each prompt before it computes anything. This
decoder uses the same weights and gives the same masks up to rounding, with six differences:

1. The keys, values and queries that the first block projects from the image tokens do not depend on the prompt, so they
   are computed once per image. (After the first block the image tokens have attended to a prompt and differ.)
2. In later blocks, the linear maps of the many image tokens are moved to the few prompt tokens
   (`two_way_attention.py`), unless there are so many of these that the maps of the image tokens are cheaper.
3. In the last attention, only the output tokens attend to the image: the others are not used afterwards.
4. The two transposed convolutions of the upscaling have kernel 2 and stride 2, so they are linear maps per token.
5. Only the mask with the highest predicted IoU is computed, not all four, and only where the image is, not its padding.
6. On a CPU, a few prompts and rows of tokens are computed at a time, so that what is computed stays in the cache.

Source: segment_anything's `modeling/mask_decoder.py` and `modeling/transformer.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from sam4mllm.segmenters.two_way_attention import AttentionToImage, TwoWayBlock

_CACHED_VALUES = 2**20
"""Values of image tokens that are computed at once on a CPU: 4 MiB in float32, one prompt of SAM ViT-B."""


class ImageKeys(NamedTuple):
    """The first block's input from P images of T tokens: tokens (P, T, C) and their projections (P, T, c)."""

    tokens: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor

    def select(self, index: torch.Tensor) -> ImageKeys:
        """Return the rows of the images `index` (N,); a single image keeps its one row, which broadcasts."""
        return self if len(self.tokens) == 1 else ImageKeys(*(part[index] for part in self))


class SharedDecoder:
    """A mask decoder with the weights of a segment_anything Sam, which must not be changed afterwards.

    Args:
        sam: A `segment_anything.modeling.Sam`; computation uses the dtype and device of its mask decoder.

    Raises:
        ValueError: The upscaling has other kernels or strides than 2.
    """

    def __init__(self, sam: Any) -> None:
        self._decoder = sam.mask_decoder
        transformer = self._decoder.transformer
        weight = self._decoder.iou_token.weight
        position = sam.prompt_encoder.get_dense_pe().to(weight)
        self._side = position.shape[-1]
        position = position.flatten(2).transpose(1, 2).contiguous()
        self._no_mask = sam.prompt_encoder.no_mask_embed.weight.to(weight)
        self._output_tokens = torch.cat([weight, self._decoder.mask_tokens.weight])
        self._blocks = [TwoWayBlock(block, position) for block in transformer.layers]
        self._final = AttentionToImage(transformer.final_attn_token_to_image, position)
        self._final_norm = transformer.norm_final_attn
        first, self._norm, _, second, _ = self._decoder.output_upscaling
        self._upscale_1, self._upscale_2 = _TokenUpscaling(first), _TokenUpscaling(second)

    def read_images(self, features: torch.Tensor) -> ImageKeys:
        """Project image embeddings (P, C, h, w) to the tokens, keys, values and queries of the first block."""
        tokens = features.to(self._output_tokens).flatten(2).transpose(1, 2).contiguous() + self._no_mask
        return ImageKeys(tokens, *self._blocks[0].project(tokens))

    def decode(
        self, images: ImageKeys, index: torch.Tensor, sparse: torch.Tensor, extent_hw: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the mask with the highest predicted IoU for each of N prompts.

        Args:
            images: P images, from `read_images`.
            index: (N,) int64, the image of each prompt.
            sparse: (N, K, C) prompt tokens, from the prompt encoder.
            extent_hw: The rows and columns of logits that are computed; the others are 0. None for all.

        Returns:
            Logits (N, 4 h, 4 w) and predicted IoU (N,), both float32.
        """
        at_once = len(sparse)
        if self._output_tokens.device.type == "cpu":
            at_once = max(_CACHED_VALUES // images.tokens[0].numel(), 1)
        parts = [
            self._decode_part(images, *part, extent_hw or (4 * self._side, 4 * self._side))
            for part in zip(index.split(at_once), sparse.split(at_once), strict=True)
        ]
        return torch.cat([logits for logits, _ in parts]), torch.cat([iou for _, iou in parts])

    def _decode_part(
        self, images: ImageKeys, index: torch.Tensor, sparse: torch.Tensor, extent_hw: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts in one batch; see `decode`."""
        # 1. Give each prompt its image's tokens and projections; a single image stays one row, shared by all prompts.
        shared = images.select(index)
        # 2. The queries are the output tokens (IoU, masks) and the prompt's tokens; both also serve as their position.
        outputs = self._output_tokens.expand(len(sparse), -1, -1)
        position = torch.cat([outputs, sparse.to(outputs)], dim=1)
        # 3. Two-way attention blocks. Only the first one has its projections of the image tokens.
        queries, tokens = self._blocks[0](position, position, shared.tokens, shared[1:])
        for block in self._blocks[1:]:
            queries, tokens = block(queries, position, tokens)
        # 4. The output tokens attend to the image tokens once more.
        queries, position = queries[:, : outputs.shape[1]], position[:, : outputs.shape[1]]
        queries = self._final_norm(queries + self._final(queries + position, tokens))
        # 5. Predict the IoU of all masks, and choose one of masks 1, 2, ... (mask 0 is for single-mask output).
        iou = self._decoder.iou_prediction_head(queries[:, 0])
        best = iou[:, 1:].argmax(dim=1) + 1
        networks = self._decoder.output_hypernetworks_mlps
        weights = torch.stack([network(queries[:, 1 + number]) for number, network in enumerate(networks)], dim=1)
        prompt = torch.arange(len(best), device=best.device)
        return self._masks(tokens, weights[prompt, best], extent_hw), iou[prompt, best].float()

    def _masks(self, tokens: torch.Tensor, weights: torch.Tensor, extent_hw: tuple[int, int]) -> torch.Tensor:
        """Compute the logits (N, 4 h, 4 w) float32 of one mask per prompt by its hypernetwork's weights (N, c)."""
        # 1. The rows and columns of tokens that the extent needs; on a CPU, a few rows at once.
        rows, columns = (-(-length // 4) for length in extent_hw)
        grid = tokens.unflatten(1, (self._side, self._side))[:, :rows, :columns]
        # The first upscaling has as many values as the tokens, the second one twice as many.
        at_once = max(_CACHED_VALUES // (4 * grid[:, :1].numel()), 1) if tokens.device.type == "cpu" else rows
        logits = torch.zeros(len(tokens), 4 * self._side, 4 * self._side, device=tokens.device)
        for first in range(0, rows, at_once):
            part = grid[:, first : first + at_once]
            # 2. Upscale the image tokens, each to 4 x 4 pixels.
            fine = functional.layer_norm(
                self._upscale_1(part), self._norm.weight.shape, self._norm.weight, self._norm.bias, self._norm.eps
            )
            fine = functional.gelu(self._upscale_2(functional.gelu(fine)))
            # 3. The logit of a pixel is the product of its features with the chosen mask's hypernetwork weights.
            flat = torch.matmul(fine.flatten(1, -2), weights[..., None])
            # 4. Rearrange (token row, token column, row and column in the first upscaling, row and column in the next).
            pixels = flat.reshape(*part.shape[:3], 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
            height, width = 4 * part.shape[1], 4 * columns
            logits[:, 4 * first : 4 * first + height, :width] = pixels.reshape(len(tokens), height, width)
        height, width = extent_hw
        logits[:, height:], logits[:, :, width:] = 0, 0
        return logits


class _TokenUpscaling:
    """A transposed convolution of kernel 2 and stride 2 as a linear map: (..., C) to (..., 2, 2, c), row first."""

    def __init__(self, convolution: nn.ConvTranspose2d) -> None:
        if convolution.kernel_size != (2, 2) or convolution.stride != (2, 2):
            raise ValueError(f"the upscaling must have kernel 2 and stride 2; got {convolution}")
        self._width = convolution.out_channels
        self._weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        bias = convolution.bias
        self._bias = torch.zeros_like(self._weight[:, 0]) if bias is None else bias.repeat(4)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(tokens, self._weight, self._bias).unflatten(-1, (2, 2, self._width))
