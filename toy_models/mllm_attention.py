"""Attention for the pre-training: rows that see the image and not each other, and heads told where to look.

It stands in for a transformers attention function while the model is built; the built model knows nothing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLD_HEADS = 2


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last places (..., T, d), whose queries are scaled, to all (..., P + T, d)."""
    asks, seen = query.shape[-2], key.shape[-2]
    hidden = torch.full((asks, seen), -1e4, dtype=query.dtype).triu(seen - asks + 1)
    return (query @ key.transpose(-1, -2) + hidden).softmax(-1) @ value


class Telling:
    """Attention over `Batch`'s layout: the prefix sees itself, a row sees the prefix and itself, all causally.

    In the told layers it also scores how much of a head's attention goes where the words point.
    """

    def __init__(self) -> None:
        self.layout = (0, 0, 0)
        self.told: dict[int, tuple[Tensor, Tensor]] = {}
        self.losses: dict[int, Tensor] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_unused: Any
    ) -> tuple[Tensor, None]:
        prefix, rows, length = self.layout
        query, key = query.to(value.dtype), key.to(value.dtype)
        images, heads, _, width = query.shape

        def by_row(x: Tensor) -> Tensor:
            return x[:, :, prefix:].reshape(images, heads, rows, length, width).transpose(1, 2)

        def with_prefix(x: Tensor) -> Tensor:
            start = x[:, None, :, :prefix].expand(-1, rows, -1, -1, -1)
            return torch.cat([start, by_row(x)], 3)

        own_query, all_key = by_row(query), with_prefix(key)
        seen = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
        # On a CPU this beats scaled_dot_product_attention, whose backward pass is slow for such short rows.
        with torch.autocast("cpu", enabled=False):
            first_out = attend(query[:, :, :prefix] * scaling, key[:, :, :prefix], value[:, :, :prefix])
            out = attend((own_query * scaling).flatten(0, 1), all_key.flatten(0, 1), with_prefix(value).flatten(0, 1))
        out = out.unflatten(0, (images, rows)).transpose(1, 2).flatten(2, 3)
        if module.layer_idx in self.told:
            (image, row, token), where = self.told[module.layer_idx][0].T, self.told[module.layer_idx][1]
            asks = own_query[image, row, :TOLD_HEADS, token]
            scores = torch.einsum("nhd,nhkd->nhk", asks, all_key[image, row, :TOLD_HEADS]).float() * scaling
            looks = scores.masked_fill(~seen[token][:, None], -torch.inf).softmax(-1)
            self.losses[module.layer_idx] = -torch.log((looks * where[:, None]).sum(-1) + 1e-4).mean()
        return torch.cat([first_out, out], 2).transpose(1, 2).contiguous(), None
