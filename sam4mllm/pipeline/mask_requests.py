"""Requests of masks: the prompts of answers as a segmenter takes them, with or without prompt tokens of locations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter


@dataclass(frozen=True, slots=True, eq=False)
class MaskRequest:
    """A prompt about the image with this index, and prompt tokens (K, C), if SAM gets any.

    With `tokens_alone` SAM gets them without the prompt's box.
    """

    image: int
    prompt: SamPrompt
    tokens: torch.Tensor | None = None
    tokens_alone: bool = False

    @property
    def box_beside_tokens(self) -> Box | None:
        """The box that SAM gets beside the tokens."""
        return None if self.tokens_alone else self.prompt.box


def requests_of(image: int, answer: Answer) -> list[MaskRequest]:
    """Return the requests for the prompts of an answer about the image with this index."""
    if not answer.sam_tokens:
        return [MaskRequest(image, prompt) for prompt in answer.prompts]
    return [
        MaskRequest(image, prompt, tokens, answer.tokens_alone)
        for prompt, tokens in zip(answer.prompts, answer.sam_tokens, strict=True)
    ]


def decode_requests(
    segmenter: Segmenter, embeddings: Embeddings, position: Sequence[int], requests: Sequence[MaskRequest]
) -> DecodedMasks:
    """Decode a mask for each request; `position` is the index of each one's image in `embeddings`.

    Raises:
        DeviceMemoryError: Memory does not suffice for one prompt.
        ValueError: Some requests have prompt tokens and others have none.
    """
    located = [
        (index, each.box_beside_tokens, each.tokens)
        for index, each in zip(position, requests, strict=True)
        if each.tokens is not None
    ]
    if not located:
        return segmenter.decode(
            embeddings, [(index, each.prompt) for index, each in zip(position, requests, strict=True)]
        )
    if len(located) < len(requests):
        raise ValueError(f"{len(located)} of {len(requests)} prompts have tokens for SAM; all or none have them")
    return segmenter.decode_tokens(embeddings, located)


def check_prompt_tokens(engine: Engine, segmenter: Segmenter) -> None:
    """Check that the segmenter takes the prompt tokens that the model's location heads project.

    Raises:
        ModelError: The segmenter takes no prompt tokens, or those of another width.
    """
    width = len(segmenter.not_a_point)
    heads = engine.mllm.location_heads if isinstance(engine, TransformersEngine) else None
    if heads is not None and heads.sam_width != width:
        raise ModelError(
            f"the model projects prompt tokens of width {heads.sam_width}, but those of the segmenter {segmenter.name} "
            f"have width {width}; use the segmenter of the training, or set method.prompt: box"
        )
