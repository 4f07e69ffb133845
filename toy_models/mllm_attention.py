"""Attention for the pre-training: rows that attend to the image but not to each other, and supervised heads.

It replaces transformers' attention function during the pre-training only; the finished model uses transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The heads of a layer that are supervised to attend to regions (and words), and those for points.
_SUPERVISED_HEADS = torch.tensor([[0, 1], [6, 7]])


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the causal attention of the last T positions (..., T, d), with scaled queries, to all (..., P + T, d)."""
    queries, keys = query.shape[-2], key.shape[-2]
    if query.device.type == "cuda":
        visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0)
    # On a CPU this is faster than scaled_dot_product_attention, whose backward pass is slow for such short rows.
    mask = torch.full((queries, keys), -1e4, dtype=query.dtype).triu(keys - queries + 1)
    return (query @ key.transpose(-1, -2) + mask).softmax(-1) @ value


class SupervisedAttention:
    """Causal attention in the layout of `Batch`: the prefix attends to itself, a row to the prefix and itself.

    In the supervised layers it also computes a loss: the attention of some heads should be on the target positions.
    """

    def __init__(self) -> None:
        self.layout = (0, 0, 0)
        self.targets: dict[int, tuple[Tensor, Tensor]] = {}
        self.losses: dict[int, Tensor] = {}
        self.point_losses: dict[int, Tensor] = {}

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

        # 1. Attention of the prefix, and of each row.
        own_query, all_key = by_row(query), with_prefix(key)
        visible = torch.ones(length, prefix + length, dtype=torch.bool, device=query.device).tril(prefix)
        with torch.autocast(query.device.type, enabled=False):
            first_out = attend(query[:, :, :prefix] * scaling, key[:, :, :prefix], value[:, :, :prefix])
            out = attend((own_query * scaling).flatten(0, 1), all_key.flatten(0, 1), with_prefix(value).flatten(0, 1))
        out = out.unflatten(0, (images, rows)).transpose(1, 2).flatten(2, 3)
        # 2. In a supervised layer, the loss of its supervised heads.
        if module.layer_idx in self.targets:
            (image, row, token, which), is_target = (
                self.targets[module.layer_idx][0].T,
                self.targets[module.layer_idx][1],
            )
            at_heads = _SUPERVISED_HEADS.to(which.device)[which]
            queries = own_query[image[:, None], row[:, None], at_heads, token[:, None]]
            keys = all_key[image[:, None], row[:, None], at_heads]
            scores = torch.einsum("nhd,nhkd->nhk", queries, keys).float() * scaling
            attention = scores.masked_fill(~visible[token][:, None], -torch.inf).softmax(-1)
            loss = -torch.log((attention * is_target[:, None]).sum(-1) + 1e-4).mean(-1)
            self.losses[module.layer_idx] = loss.mean()
            self.point_losses[module.layer_idx] = loss[which == 1].detach().mean()
        return torch.cat([first_out, out], 2).transpose(1, 2).contiguous(), None
