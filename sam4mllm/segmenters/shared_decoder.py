"""SharedDecoder: SAM's mask decoder for many prompts per image, with the work on the image shared between prompts.

segment_anything's `MaskDecoder.predict_masks` repeats the image for each prompt before it computes anything. This
decoder uses the same weights and gives the same masks up to rounding, with four differences:

1. The keys, values and queries that the first block projects from the image tokens do not depend on the prompt, so they
   are computed once per image. (After the first block the image tokens have attended to a prompt and differ.)
2. Linear maps of the same image tokens are one matrix product, with the constant part, bias and position, computed at
   construction.
3. The two transposed convolutions of the upscaling have kernel 2 and stride 2, so they are linear maps per token.
4. Only the mask with the highest predicted IoU is computed, not all four.

Source: segment_anything's `modeling/mask_decoder.py` and `modeling/transformer.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


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
        self._transformer = self._decoder.transformer
        weight = self._decoder.iou_token.weight
        position = sam.prompt_encoder.get_dense_pe().to(weight)
        self._side = position.shape[-1]
        self._position = position.flatten(2).transpose(1, 2).contiguous()
        self._no_mask = sam.prompt_encoder.no_mask_embed.weight.to(weight)
        self._output_tokens = torch.cat([weight, self._decoder.mask_tokens.weight])
        self._blocks = list(self._transformer.layers)
        self._projections = [
            _FusedProjection(
                [
                    (block.cross_attn_token_to_image.k_proj, True),
                    (block.cross_attn_token_to_image.v_proj, False),
                    (block.cross_attn_image_to_token.q_proj, True),
                ],
                self._position,
            )
            for block in self._blocks
        ]
        final = self._transformer.final_attn_token_to_image
        self._final_projection = _FusedProjection([(final.k_proj, True), (final.v_proj, False)], self._position)
        first, self._norm, _, second, _ = self._decoder.output_upscaling
        self._upscale_1, self._upscale_2 = _TokenUpscaling(first), _TokenUpscaling(second)

    def read_images(self, features: torch.Tensor) -> ImageKeys:
        """Project image embeddings (P, C, h, w) to the tokens, keys, values and queries of the first block."""
        tokens = features.to(self._output_tokens).flatten(2).transpose(1, 2).contiguous() + self._no_mask
        return ImageKeys(tokens, *self._projections[0](tokens))

    def decode(self, images: ImageKeys, index: torch.Tensor, sparse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the mask with the highest predicted IoU for each of N prompts.

        Args:
            images: P images, from `read_images`.
            index: (N,) int64, the image of each prompt.
            sparse: (N, K, C) prompt tokens, from the prompt encoder.

        Returns:
            Logits (N, 4 h, 4 w) and predicted IoU (N,), both float32.
        """
        # 1. Give each prompt its image's tokens and projections; a single image stays one row, shared by all prompts.
        shared = images.select(index)
        # 2. The queries are the output tokens (IoU, masks) and the prompt's tokens; both also serve as their position.
        outputs = self._output_tokens.expand(len(sparse), -1, -1)
        position = torch.cat([outputs, sparse.to(outputs)], dim=1)
        queries, tokens = position, shared.tokens
        # 3. Two-way attention blocks (TwoWayAttentionBlock.forward).
        for number, (block, projection) in enumerate(zip(self._blocks, self._projections, strict=True)):
            keys, values, image_queries = shared[1:] if number == 0 else projection(tokens)
            # 3a. Self-attention of the queries.
            if block.skip_first_layer_pe:
                queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
            else:
                positioned = queries + position
                queries = block.norm1(queries + block.self_attn(q=positioned, k=positioned, v=queries))
            # 3b. The queries attend to the image tokens, then pass the MLP.
            to_image = block.cross_attn_token_to_image
            queries = block.norm2(queries + _attend_to_image(to_image, queries + position, keys, values))
            queries = block.norm3(queries + block.mlp(queries))
            # 3c. The image tokens attend to the queries; from here on they differ between prompts.
            to_queries = block.cross_attn_image_to_token
            tokens = block.norm4(tokens + _attend_to_queries(to_queries, image_queries, queries + position, queries))
        # 4. The queries attend to the image tokens once more.
        final = self._transformer.final_attn_token_to_image
        keys, values = self._final_projection(tokens)
        queries = self._transformer.norm_final_attn(queries + _attend_to_image(final, queries + position, keys, values))
        return self._best_masks(queries, tokens)

    def _best_masks(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the mask with the highest predicted IoU of masks 1, 2, ... (mask 0 is for single-mask output)."""
        # 1. Predict the IoU of all masks and choose one for each prompt.
        iou = self._decoder.iou_prediction_head(queries[:, 0])
        best = iou[:, 1:].argmax(dim=1) + 1
        networks = self._decoder.output_hypernetworks_mlps
        weights = torch.stack([network(queries[:, 1 + number]) for number, network in enumerate(networks)], dim=1)
        prompt = torch.arange(len(best), device=best.device)
        # 2. Upscale the image tokens, each to 4 x 4 pixels.
        fine = functional.layer_norm(
            self._upscale_1(tokens), self._norm.weight.shape, self._norm.weight, self._norm.bias, self._norm.eps
        )
        fine = functional.gelu(self._upscale_2(functional.gelu(fine)))
        # 3. The logit of a pixel is the product of its features with the chosen mask's hypernetwork weights.
        flat = torch.matmul(fine.flatten(1, -2), weights[prompt, best][..., None])
        # 4. Rearrange (token row, token column, row and column in the first upscaling, row and column in the second).
        side = self._side
        parts = flat.reshape(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return parts.reshape(-1, 4 * side, 4 * side).float(), iou[prompt, best].float()


class _FusedProjection:
    """Several linear maps of the same image tokens as one matrix product.

    Args:
        maps: Each linear map, and whether it reads the tokens with the position added: W (x + p) + b = W x + (W p + b).
        position: (1, T, C).
    """

    def __init__(self, maps: list[tuple[nn.Linear, bool]], position: torch.Tensor) -> None:
        self._widths = [linear.out_features for linear, _ in maps]
        self._weight = torch.cat([linear.weight for linear, _ in maps]).T.contiguous()
        self._offset = torch.cat(
            [
                linear(position) if with_position else linear.bias.expand(*position.shape[:2], -1)
                for linear, with_position in maps
            ],
            dim=-1,
        )

    def __call__(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.matmul(tokens, self._weight) + self._offset).split(self._widths, dim=-1)


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


def _split_heads(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Reshape (N, T, count * c) to (N, count, T, c)."""
    return tokens.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend_to_image(attention: Any, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend from prompt tokens (N, K, C) to image keys and values (N, T, c), or (1, T, c) if all share one image."""
    queries = attention.q_proj(tokens)
    # With one image, all tokens of all prompts are rows of one attention: they do not interact in it.
    rows = queries.flatten(0, 1)[None] if len(keys) == 1 else queries
    query_heads, key_heads, value_heads = (_split_heads(part, attention.num_heads) for part in (rows, keys, values))
    out = functional.scaled_dot_product_attention(query_heads, key_heads, value_heads).transpose(1, 2).flatten(2)
    return attention.out_proj(out.reshape(queries.shape))


def _attend_to_queries(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend from image tokens, projected (N, T, c) or (1, T, c), to prompt tokens (N, K, C): many queries, few keys.

    The scores are stored as (..., K, T), so that the softmax over the short axis runs along contiguous memory. The
    output projection is applied to the few values instead of the many outputs, and all heads are summed in one product.
    """
    count = attention.num_heads
    query_heads = _split_heads(queries, count)
    width = query_heads.shape[-1]
    key_heads = _split_heads(attention.k_proj(keys), count) * width**-0.5
    value_heads = _split_heads(attention.v_proj(values), count)
    weights = torch.matmul(key_heads, query_heads.transpose(-1, -2)).softmax(dim=-2)
    projection = attention.out_proj.weight.T.unflatten(0, (count, width))
    projected = torch.matmul(value_heads, projection).flatten(1, 2)
    return torch.matmul(weights.flatten(1, 2).transpose(-1, -2), projected) + attention.out_proj.bias
