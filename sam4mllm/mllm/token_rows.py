"""Trained rows of embedding matrices, inserted into the layer's output and not into a copy of its matrix.

peft's `TrainableTokensLayer` copies the matrix in each pass, and its backward pass makes gradients of all rows: twice
151,936 x 4,096 values for each of both matrices of an 8B model. The values here are those of peft, up to the order of
additions.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer


class TokenRows(TrainableTokensLayer):
    """peft's layer with trained rows, which computes with the frozen matrix and the rows separately."""

    def forward_adapters(self, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return embeddings (..., d) of token ids `x` (...), or logits (..., V) of states `x` (..., d)."""
        if self.disable_adapters or self.merged or len(active_adapters) != 1:
            unchanged: torch.Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return unchanged
        (adapter,) = active_adapters
        layer, tokens = self.get_base_layer(), self.token_indices[adapter]
        rows = self.trainable_tokens_delta[adapter].to(layer.weight.dtype)
        output: torch.Tensor = layer(x)
        if not isinstance(layer, torch.nn.Embedding):
            # In place: the layer's backward pass needs no output, and logits are larger than all else.
            output[..., tokens] = torch.nn.functional.linear(x, rows)
            return output
        scale = self._get_embed_scale()
        if scale is not None:
            rows = rows * scale.to(rows.dtype)
        for token, row in zip(tokens, rows, strict=True):
            output = torch.where((x == token)[..., None], row, output)
        return output


def insert_rows(model: Any) -> None:
    """Let all layers with trained rows of a `PeftModel` be `TokenRows`."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TokenRows
