"""The attention of SAM's image encoder in parts that stay in a CPU's cache.

segment_anything computes the scores of all pairs of image tokens, which take 800 MB in a global block of SAM ViT-B, and
adds the two relative positions to them one after the other. Here all this is done for a few queries at a time, so the
scores are never written to memory. Results are equal up to rounding.

Source: segment_anything's `modeling/image_encoder.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

_CACHED_SCORES = 2**19
"""Scores that are computed at once: 2 MiB in float32."""


def with_partial_attention(encoder: Any) -> Any:
    """Return an ImageEncoderViT with the same weights whose attention is computed in parts; `encoder` is unchanged."""
    other = copy.copy(encoder)
    other._modules = dict(encoder._modules)
    blocks = []
    for block in encoder.blocks:
        changed = copy.copy(block)
        changed._modules = {**block._modules, "attn": _PartialAttention(block.attn)}
        blocks.append(changed)
    other.blocks = nn.ModuleList(blocks)
    return other


class _PartialAttention(nn.Module):
    """The attention of segment_anything's `Attention`, a few rows of queries at a time."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.whole = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend between tokens (B, H, W, C), all with all."""
        from segment_anything.modeling.image_encoder import get_rel_pos

        whole = self.whole
        batch, height, width, _ = x.shape
        count = height * width
        # 1. Queries, keys and values (B * heads, H * W, c).
        qkv = whole.qkv(x).reshape(batch, count, 3, whole.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.flatten(1, 2).unbind(0)
        scaled, transposed = queries * whole.scale, keys.transpose(1, 2)
        # 2. The scores of each query with the row and the column of each key.
        rows = columns = None
        if whole.use_rel_pos:
            grid = queries.unflatten(1, (height, width))
            rows = torch.einsum("bhwc,hkc->bhwk", grid, get_rel_pos(height, height, whole.rel_pos_h)).contiguous()
            columns = torch.einsum("bhwc,wkc->bhwk", grid, get_rel_pos(width, width, whole.rel_pos_w)).contiguous()
        # 3. A few heads at a time, and of a large image a few rows of queries.
        heads_at_once = max(_CACHED_SCORES // count**2, 1)
        rows_at_once = min(max(_CACHED_SCORES // (width * count), 1), height)
        out = torch.empty_like(values)
        for first in range(0, len(queries), heads_at_once):
            heads = slice(first, first + heads_at_once)
            for row in range(0, height, rows_at_once):
                part = slice(row * width, (row + rows_at_once) * width)
                scores = torch.matmul(scaled[heads, part], transposed[heads])
                if rows is not None and columns is not None:
                    lines = slice(row, row + rows_at_once)
                    bias = rows[heads, lines, :, :, None] + columns[heads, lines, :, None, :]
                    scores += bias.reshape(scores.shape)
                out[heads, part] = torch.matmul(scores.softmax(dim=-1), values[heads])
        # 4. Merge the heads.
        merged = out.view(batch, whole.num_heads, height, width, -1).permute(0, 2, 3, 1, 4).flatten(3)
        return whole.proj(merged)
