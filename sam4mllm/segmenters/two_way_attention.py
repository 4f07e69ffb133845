"""The two-way attention of SAM's mask decoder, between the few tokens of a prompt and the many tokens of an image.

The modules' weights are those of segment_anything's `modeling/transformer.py`, and results are equal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class TwoWayBlock:
    """A block of the transformer (TwoWayAttentionBlock), which updates the prompt tokens and the image tokens."""

    def __init__(self, block: Any, position: torch.Tensor) -> None:
        self._block = block
        self._to_image = AttentionToImage(block.cross_attn_token_to_image, position)
        self._to_queries = AttentionToQueries(block.cross_attn_image_to_token, position)

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project image tokens (P, T, C) to keys and values of one attention, and queries of the other."""
        keys, values = self._to_image.project(tokens)
        return keys, values, self._to_queries.project(tokens)

    def __call__(
        self,
        queries: torch.Tensor,
        position: torch.Tensor,
        tokens: torch.Tensor,
        projected: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new prompt tokens (N, K, C) and image tokens (N, T, C); `projected` is of `project(tokens)`."""
        block = self._block
        # 1. Self-attention of the prompt tokens.
        if block.skip_first_layer_pe:
            queries = block.norm1(block.self_attn(q=queries, k=queries, v=queries))
        else:
            positioned = queries + position
            queries = block.norm1(queries + block.self_attn(q=positioned, k=positioned, v=queries))
        # 2. The prompt tokens attend to the image tokens, then pass the MLP.
        keys_values = None if projected is None else projected[:2]
        queries = block.norm2(queries + self._to_image(queries + position, tokens, keys_values))
        queries = block.norm3(queries + block.mlp(queries))
        # 3. The image tokens attend to the prompt tokens; from here on they differ between prompts.
        image_queries = None if projected is None else projected[2]
        return queries, block.norm4(self._to_queries(tokens, queries + position, queries, image_queries))


class AttentionToImage:
    """Attention from prompt tokens to image tokens."""

    def __init__(self, attention: Any, position: torch.Tensor) -> None:
        self._attention = attention
        self._maps = _FusedProjection([(attention.k_proj, True), (attention.v_proj, False)], position)
        self._folded_keys = _FoldedMap(attention.k_proj, attention.num_heads, position)
        self._values = attention.v_proj.weight.unflatten(0, (attention.num_heads, -1)).transpose(1, 2).contiguous()

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project image tokens (P, T, C) to keys and values (P, T, c)."""
        keys, values = self._maps(tokens)
        return keys, values

    def __call__(
        self, queries: torch.Tensor, tokens: torch.Tensor, projected: tuple[torch.Tensor, ...] | None = None
    ) -> torch.Tensor:
        """Attend from prompt tokens (N, K, C) to image tokens (N, T, C), or (1, T, C) if all share one image."""
        heads = self._attention.num_heads
        small = self._attention.q_proj(queries)
        if projected is None and _folds(self._attention, queries):
            scaled = _split_heads(small, heads)
            weights = self._folded_keys.scores(scaled * scaled.shape[-1] ** -0.5, tokens).softmax(dim=-1)
            # The values' map and bias are applied to the weighted means of the image tokens: weights sum to 1.
            means = torch.matmul(weights.flatten(1, 2), tokens).unflatten(1, (heads, -1))
            out = torch.matmul(means, self._values).transpose(1, 2).flatten(2) + self._attention.v_proj.bias
            return self._attention.out_proj(out)
        keys, values = self.project(tokens) if projected is None else projected
        # With one image, all tokens of all prompts are rows of one attention: they do not interact in it.
        rows = small.flatten(0, 1)[None] if len(keys) == 1 else small
        query_heads, key_heads, value_heads = (_split_heads(part, heads) for part in (rows, keys, values))
        out = functional.scaled_dot_product_attention(query_heads, key_heads, value_heads).transpose(1, 2).flatten(2)
        return self._attention.out_proj(out.reshape(small.shape))


class AttentionToQueries:
    """Attention from image tokens to prompt tokens: many queries, few keys."""

    def __init__(self, attention: Any, position: torch.Tensor) -> None:
        self._attention = attention
        self._map = _FusedProjection([(attention.q_proj, True)], position)
        self._folded_queries = _FoldedMap(attention.q_proj, attention.num_heads, position)
        self._out = attention.out_proj.weight.T.unflatten(0, (attention.num_heads, -1)).contiguous()

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project image tokens (P, T, C) to queries (P, T, c)."""
        return self._map(tokens)[0]

    def __call__(
        self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, projected: torch.Tensor | None
    ) -> torch.Tensor:
        """Return image tokens (N, T, C), or (1, T, C), plus what they attend to in prompt tokens (N, K, C).

        The scores are stored as (..., K, T), so that the softmax over the short axis runs along contiguous memory. The
        output projection is applied to the few values instead of the many outputs, and all heads are summed in one
        product. Each head's weights sum to 1, so the bias is divided among the heads' values.
        """
        heads = self._attention.num_heads
        key_heads = _split_heads(self._attention.k_proj(keys), heads)
        key_heads = key_heads * key_heads.shape[-1] ** -0.5
        if projected is None and _folds(self._attention, keys):
            scores = self._folded_queries.scores(key_heads, tokens)
        else:
            queries = _split_heads(self.project(tokens) if projected is None else projected, heads)
            scores = torch.matmul(key_heads, queries.transpose(-1, -2))
        value_heads = _split_heads(self._attention.v_proj(values), heads)
        moved = torch.matmul(value_heads, self._out) + self._attention.out_proj.bias / heads
        weights = scores.softmax(dim=-2).flatten(1, 2)
        return torch.baddbmm(tokens, weights.transpose(1, 2), moved.flatten(1, 2))


class _FoldedMap:
    """The scores of a few projected tokens with many image tokens x at positions p, without a projection of these.

    q . (W (x + p) + b) = (W^T q) . x + q . (W p + b): W is applied to the few q, and W p + b is constant.
    """

    def __init__(self, linear: nn.Linear, heads: int, position: torch.Tensor) -> None:
        self._weight = linear.weight.unflatten(0, (heads, -1)).contiguous()
        self._constant = _split_heads(linear(position), heads).transpose(-1, -2).contiguous()

    def scores(self, few: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores (N, heads, K, T) of (N, heads, K, c) with image tokens (N, T, C)."""
        folded = torch.matmul(few, self._weight).flatten(1, 2)
        constant = torch.matmul(few, self._constant).flatten(1, 2)
        return torch.baddbmm(constant, folded, tokens.transpose(1, 2)).unflatten(1, few.shape[1:3])


def _folds(attention: Any, few: torch.Tensor) -> bool:
    """Return whether a map is cheaper on the prompt tokens (N, K, C) of every head than on the image tokens.

    In half precision the map of the image tokens is kept, since the attention then computes its scores in float32.
    """
    return few.dtype == torch.float32 and attention.num_heads * few.shape[1] <= attention.internal_dim


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


def _split_heads(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Reshape (N, T, count * c) to (N, count, T, c)."""
    return tokens.unflatten(-1, (count, -1)).transpose(1, 2)
