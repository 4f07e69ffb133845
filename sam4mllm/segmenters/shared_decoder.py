"""SAM's mask decoder for many prompts of few images: segment_anything's own weights, in an order that shares.

`MaskDecoder.predict_masks` repeats the image for each prompt before it does anything. Here what depends on the
image alone (its keys and values, and its queries in the first block) is computed once per image; the linear maps
that read the same image tokens are one product; the two up-scalings, which never mix pixels (kernel 2, stride 2), are
linear maps per token; and one of the three masks, the one with the highest predicted IoU, is computed instead of four.
The arithmetic is otherwise that of segment_anything's `modeling/mask_decoder.py` and `modeling/transformer.py`, up to
rounding.

This module knows nothing about pixels, sizes or prompts in coordinates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


class ImageKeys(NamedTuple):
    """What the first block reads of P images of T tokens: image tokens (P, T, C), and their projections (P, T, c)."""

    tokens: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor

    def of(self, index: torch.Tensor) -> ImageKeys:
        """The rows for prompts of the images `index` (N,); one row is left as it is when there is one image."""
        return self if len(self.tokens) == 1 else ImageKeys(*(part[index] for part in self))


class SharedDecoder:
    """Decodes prompts with the weights of a segment_anything Sam, which must not change afterwards.

    Args:
        sam: A `segment_anything.modeling.Sam`; its mask decoder's number type and device are the ones computed in.
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
        self._readers = [
            _Reader(
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
        self._final_reader = _Reader([(final.k_proj, True), (final.v_proj, False)], self._position)
        first, self._norm, _, second, _ = self._decoder.output_upscaling
        self._first, self._second = _PerToken(first), _PerToken(second)

    def read_images(self, features: torch.Tensor) -> ImageKeys:
        """What the first block needs of image embeddings (P, C, h, w)."""
        tokens = features.to(self._output_tokens).flatten(2).transpose(1, 2).contiguous() + self._no_mask
        return ImageKeys(tokens, *self._readers[0](tokens))

    def decode(self, images: ImageKeys, index: torch.Tensor, sparse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask with the highest predicted IoU for each of N prompts.

        Args:
            images: P images, from `read_images`.
            index: (N,) int64, the image of each prompt.
            sparse: (N, K, C) prompt tokens, from the prompt encoder.

        Returns:
            Logits (N, 4 h, 4 w) and predicted IoU (N,), both float32.
        """
        read = images.of(index)
        outputs = self._output_tokens.expand(len(sparse), -1, -1)
        position = torch.cat([outputs, sparse.to(outputs)], dim=1)
        queries, tokens = position, read.tokens
        for number, (block, reader) in enumerate(zip(self._blocks, self._readers, strict=True)):
            keys, values, image_queries = read[1:] if number == 0 else reader(tokens)
            if block.skip_first_layer_pe:
                queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
            else:
                placed = queries + position
                queries = block.norm1(queries + block.self_attn(q=placed, k=placed, v=queries))
            to_image = block.cross_attn_token_to_image
            queries = block.norm2(queries + _read_image(to_image, queries + position, keys, values))
            queries = block.norm3(queries + block.mlp(queries))
            to_tokens = block.cross_attn_image_to_token
            tokens = block.norm4(tokens + _read_tokens(to_tokens, image_queries, queries + position, queries))
        final = self._transformer.final_attn_token_to_image
        keys, values = self._final_reader(tokens)
        queries = self._transformer.norm_final_attn(queries + _read_image(final, queries + position, keys, values))
        return self._masks(queries, tokens)

    def _masks(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks one of the masks 1, 2, ... (0 is for a single output) by predicted IoU and computes it alone."""
        iou = self._decoder.iou_prediction_head(queries[:, 0])
        best = iou[:, 1:].argmax(dim=1) + 1
        networks = self._decoder.output_hypernetworks_mlps
        weights = torch.stack([network(queries[:, 1 + number]) for number, network in enumerate(networks)], dim=1)
        prompt = torch.arange(len(best), device=best.device)
        fine = functional.layer_norm(
            self._first(tokens), self._norm.weight.shape, self._norm.weight, self._norm.bias, self._norm.eps
        )
        fine = functional.gelu(self._second(functional.gelu(fine)))
        flat = torch.matmul(fine.flatten(1, -2), weights[prompt, best][..., None])
        side = self._side
        # Axes: token row and column, then row and column within it after the first and after the second up-scaling.
        parts = flat.reshape(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return parts.reshape(-1, 4 * side, 4 * side).float(), iou[prompt, best].float()


class _Reader:
    """Several linear maps of the same image tokens, some of them with the position added, as one product."""

    def __init__(self, maps: list[tuple[nn.Linear, bool]], position: torch.Tensor) -> None:
        self._widths = [linear.out_features for linear, _ in maps]
        self._weight = torch.cat([linear.weight for linear, _ in maps]).T.contiguous()
        self._offset = torch.cat(
            [linear(position) if placed else linear.bias.expand(*position.shape[:2], -1) for linear, placed in maps],
            dim=-1,
        )

    def __call__(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.matmul(tokens, self._weight) + self._offset).split(self._widths, dim=-1)


class _PerToken:
    """A transposed convolution of kernel 2 and stride 2 as a linear map: (..., C) to (..., 2, 2, c), row first."""

    def __init__(self, convolution: nn.ConvTranspose2d) -> None:
        if convolution.kernel_size != (2, 2) or convolution.stride != (2, 2):
            raise ValueError(f"up-scaling has kernel 2 and stride 2; got {convolution}")
        self._width = convolution.out_channels
        self._weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        bias = convolution.bias
        self._bias = torch.zeros_like(self._weight[:, 0]) if bias is None else bias.repeat(4)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(tokens, self._weight, self._bias).unflatten(-1, (2, 2, self._width))


def _heads(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """(N, T, count * c) as (N, count, T, c)."""
    return tokens.unflatten(-1, (count, -1)).transpose(1, 2)


def _read_image(attention: Any, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Prompt tokens (N, K, C) attend to image tokens, keys and values (N, T, c); (1, T, c) if all share one."""
    queries = attention.q_proj(tokens)
    # One image: the prompts' tokens do not see each other here, so they are rows of one attention.
    rows = queries.flatten(0, 1)[None] if len(keys) == 1 else queries
    query_heads, key_heads, value_heads = (_heads(part, attention.num_heads) for part in (rows, keys, values))
    out = functional.scaled_dot_product_attention(query_heads, key_heads, value_heads).transpose(1, 2).flatten(2)
    return attention.out_proj(out.reshape(queries.shape))


def _read_tokens(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Image tokens, queries (N, T, c) or (1, T, c), attend to prompt tokens (N, K, C): few keys, many queries.

    The scores stay (..., K, T), so that the softmax runs over the short axis along contiguous memory; the output's
    projection is taken into the few values, so that all heads end in one product.
    """
    count = attention.num_heads
    query_heads = _heads(queries, count)
    width = query_heads.shape[-1]
    key_heads = _heads(attention.k_proj(keys), count) * width**-0.5
    value_heads = _heads(attention.v_proj(values), count)
    weights = torch.matmul(key_heads, query_heads.transpose(-1, -2)).softmax(dim=-2)
    projection = attention.out_proj.weight.T.unflatten(0, (count, width))
    projected = torch.matmul(value_heads, projection).flatten(1, 2)
    return torch.matmul(weights.flatten(1, 2).transpose(-1, -2), projected) + attention.out_proj.bias
