"""Simulated events: a reply of a model with location heads, and the kill of a process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sam4mllm.geometry import Box
from sam4mllm.mllm.engine import DecodedLocation, Reply
from sam4mllm.prompts.conversation import LOCATION_TOKEN


class Killed(BaseException):
    """Simulates a kill: it is not caught by `except Exception`."""


def located(
    text: str, *boxes: Box, prompt_tokens: Sequence[Sequence[float]] | None = None, finished: bool = True
) -> Reply:
    """Return a reply whose location tokens have these boxes in shares of the image.

    Each has one prompt token (1, 4), by default of its number from 0. The log-probability of the first token is -0.5,
    of the second one -1 and so on; that of a text without tokens is -2.
    """
    ends = [index + len(LOCATION_TOKEN) for index in range(len(text)) if text.startswith(LOCATION_TOKEN, index)]
    states = [[float(number)] * 4 for number in range(len(ends))] if prompt_tokens is None else prompt_tokens
    locations = tuple(
        DecodedLocation(box, torch.tensor([state]), end) for box, state, end in zip(boxes, states, ends, strict=True)
    )
    tokens = tuple((end, -0.5 * (index + 1)) for index, end in enumerate(ends)) or ((len(text), -2.0),)
    return Reply(text, finished, tokens, locations)
