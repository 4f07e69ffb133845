"""Requests of masks: the prompts of answers as a segmenter takes them, with or without prompt tokens of locations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.base import Answer, Method
from sam4mllm.methods.parsing import require_locating_engine
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter
from sam4mllm.segmenters.fake import NoSegmenter


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


def check_locations(method: Method, engine: Engine, segmenter: Segmenter) -> None:
    """Check that engine and segmenter have what the locations of a method need, if it has any.

    Raises:
        ModelError: The engine decodes no locations, or its model has no location heads; the segmenter takes no prompt
            tokens, or those of another width than the heads', and the method prompts SAM with them.
    """
    if not method.needs_locations:
        return
    require_locating_engine(engine)
    heads = engine.mllm.location_heads if isinstance(engine, TransformersEngine) else None
    if heads is None and isinstance(engine, TransformersEngine):
        raise ModelError(
            f"the method {method.name} needs location heads, which the model does not have; use a run that was trained "
            "by it, or a base with location heads"
        )
    if not method.needs_prompt_tokens or isinstance(segmenter, NoSegmenter):
        return
    width = len(segmenter.not_a_point)
    if heads is not None and heads.sam_width != width:
        raise ModelError(
            f"the model projects prompt tokens of width {heads.sam_width}, but those of the segmenter {segmenter.name} "
            f"have width {width}; use the segmenter of the training, or set method.prompt: box"
        )
