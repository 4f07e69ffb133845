"""LocationHeads: a box decoder, a location encoder and a projection to SAM's prompt tokens (NExT-Chat's pix2emb).

Source: NExT-Chat, arXiv 2311.04498, section 3: the last hidden state at a trigger token is a location embedding, which
the heads decode; the location encoder embeds a box for the input.
"""

from __future__ import annotations

import torch
from torch import nn


class LocationHeads(nn.Module):
    """Heads between the hidden states of a language model and locations in its image, computed in float32.

    Boxes are xyxy in shares of the image's width and height. The last layer of the projection begins at zero, with
    SAM's embedding of "not a point" as its offset (`begin_as_box_prompt`), so training of masks begins as prompting
    with the box alone. The shapes of the weights determine the arguments.

    Args:
        hidden_size: The width d of the language model.
        sam_tokens: The number K of sparse prompt tokens per location.
        sam_width: The width C of SAM's prompt tokens.
    """

    def __init__(self, hidden_size: int, sam_tokens: int = 1, sam_width: int = 256) -> None:
        super().__init__()
        self.hidden_size, self.sam_token_count, self.sam_width = hidden_size, sam_tokens, sam_width
        half = max(1, hidden_size // 2)
        self.box_decoder = nn.Sequential(_Dense(hidden_size, half), nn.ReLU(), _Dense(half, 4))
        self.location_encoder = nn.Sequential(_Dense(4, half), nn.ReLU(), _Dense(half, hidden_size))
        self.prompt_projection = nn.Sequential(
            _Dense(hidden_size, hidden_size), nn.ReLU(), _Dense(hidden_size, sam_tokens * sam_width, bias=False)
        )
        self.prompt_offset = nn.Parameter(torch.zeros(sam_tokens, sam_width))

    def begin_as_box_prompt(self, not_a_point: torch.Tensor) -> None:
        """Let all prompt tokens be `not_a_point` (C,), whatever the state is, until the projection is trained."""
        last = self.prompt_projection[-1]
        assert isinstance(last, _Dense)
        with torch.no_grad():
            last.weight.zero_()
            self.prompt_offset.copy_(not_a_point.float().expand_as(self.prompt_offset))

    def decode_boxes(self, states: torch.Tensor) -> torch.Tensor:
        """Return the boxes (N, 4) of location embeddings (N, d); they need not be ordered or within the image."""
        with _float32(states):
            boxes: torch.Tensor = self.box_decoder(states.float())
        return boxes

    def encode_boxes(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """Return the location embeddings (N, d) of boxes (N, 4)."""
        with _float32(boxes_xyxy):
            embeddings: torch.Tensor = self.location_encoder(boxes_xyxy.float())
        return embeddings

    def sam_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Return the sparse prompt tokens (N, K, C) of location embeddings (N, d)."""
        with _float32(states):
            tokens: torch.Tensor = self.prompt_projection(states.float())
            return tokens.reshape(-1, self.sam_token_count, self.sam_width) + self.prompt_offset


def ordered(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Return boxes (N, 4) with their corners in order."""
    first, second = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


class _Dense(nn.Module):
    """A linear layer of torch's initial values that is no `nn.Linear`, so that LoRA's "all-linear" leaves it out."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        layer = nn.Linear(inputs, outputs, bias=bias)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.weight, self.bias)


def _float32(tensor: torch.Tensor) -> torch.autocast:
    """Return a context without autocast: bfloat16 coordinates are off by more than a pixel."""
    return torch.autocast(tensor.device.type, enabled=False)
