"""Forward passes with locations: embeddings of boxes in place of a question's location tokens, and the last states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.control_tokens import control_token_error
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation

if TYPE_CHECKING:
    import torch

    from sam4mllm.mllm.loading import Mllm


@dataclass(slots=True)
class CapturedStates:
    """The states of a model's last forward pass.

    Attributes:
        states: The last hidden states after the final norm, (B, T, d) in the model's dtype, or (B, C, d) of those C
            positions whose logits were computed; None before the first pass.
    """

    states: torch.Tensor | None = None


@contextmanager
def captured_states(mllm: Mllm) -> Iterator[CapturedStates]:
    """Keep the input of the output layer in each forward pass inside the block, with its gradients."""
    captured = CapturedStates()

    def keep(layer: Any, inputs: tuple[Any, ...]) -> None:
        captured.states = inputs[0]

    hook = mllm.model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        hook.remove()


@contextmanager
def region_inputs(mllm: Mllm, boxes_xyxy: torch.Tensor | None) -> Iterator[None]:
    """Embed boxes by the location encoder in the forward pass inside the block, with gradients.

    Args:
        mllm: A model with location heads.
        boxes_xyxy: The boxes (B, T, 4) float32, in shares of the image's width and height, at the positions of
            `input_ids` (B, T) that they are embedded at, and NaN at all others; None to embed tokens only.

    Raises:
        ModelError: The model has no location heads, or did not embed tokens of this shape inside the block.
    """
    if boxes_xyxy is None:
        yield
        return
    heads = mllm.location_heads
    if heads is None:
        raise ModelError("the model has no location heads, so no box can be part of its input; train it with pix2emb")
    is_region = ~boxes_xyxy.isnan().any(dim=-1)
    passes = 0

    def replace(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal passes
        # Some models embed single tokens, such as a placeholder of images, besides those of the batch.
        if output.shape[:-1] != is_region.shape:
            return None
        passes += 1
        chosen = is_region.to(output.device)
        embedded = output.clone()
        embedded[chosen] = heads.encode_boxes(boxes_xyxy.to(output.device)[chosen]).to(output.dtype)
        return embedded

    hook = mllm.model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
    if not passes:
        raise ModelError(
            f"{mllm.model.config.model_type!r} did not embed its tokens by its embedding layer, so boxes cannot be "
            "part of its input"
        )


def check_markers(processor: Any, conversations: Sequence[Conversation]) -> None:
    """Check that the location tokens in questions and supervised answers are those of the turns' locations.

    Only for a tokenizer that has the location token; its text is plain text for others.

    Raises:
        DataError: A text has the token where the turn has no location, or lacks it where it has one.
    """
    if LOCATION_TOKEN not in processor.tokenizer.get_vocab():
        return
    for turn in (turn for conversation in conversations for turn in conversation.turns):
        if turn.role == "assistant" and not turn.supervised:
            # A former reply of the model.
            continue
        found = [index for index in range(len(turn.text)) if turn.text.startswith(LOCATION_TOKEN, index)]
        expected = [location.start for location in turn.locations]
        if set(found) - set(expected):
            raise control_token_error(turn.text, LOCATION_TOKEN)
        if found != expected:
            raise DataError(
                f"the text {turn.text!r:.200} has {LOCATION_TOKEN!r} at {found}, but locations for {expected}", "phrase"
            )
