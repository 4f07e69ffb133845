"""Forward passes with locations: embeddings of boxes in place of a question's location tokens, and the last states.

In the token rows of prompts the location tokens of questions are `RegionToken`, which hold their boxes: rows are equal
only if their boxes are, and each pass embeds the boxes of the tokens that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box
from sam4mllm.mllm.control_tokens import control_token_error
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation

if TYPE_CHECKING:
    import torch

    from sam4mllm.mllm.loading import Mllm

_NO_HEADS = "the model has no location heads, so no box can be part of its input; train it with method.name=pix2emb"


class RegionToken(int):
    """The id of a question's location token with the box (in shares) that is embedded there; equal only to the same."""

    box: Box

    def __new__(cls, token: int, box: Box) -> RegionToken:
        made = super().__new__(cls, token)
        made.box = box
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionToken) and int(self) == int(other) and self.box == other.box

    def __ne__(self, other: object) -> bool:
        # `int` has one of its own, which would compare the ids alone.
        return not self == other

    def __hash__(self) -> int:
        return hash((int(self), self.box))


def with_regions(mllm: Mllm, conversation: Conversation, tokens: list[int]) -> list[int]:
    """Return the tokens of a rendered conversation with the location tokens of its questions as `RegionToken`.

    Raises:
        ModelError: A question has a location, but the model has no location heads; or the rendered text has not the
            location tokens of the turns.
    """
    token = mllm.location_id
    if token is None:
        if conversation.has_regions:
            raise ModelError(_NO_HEADS)
        return tokens
    boxes: list[Box | None] = []
    for turn in conversation.turns:
        is_question = turn.role == "user"
        boxes += [each.box for each in turn.locations] if is_question else [None] * turn.text.count(LOCATION_TOKEN)
    positions = [index for index, each in enumerate(tokens) if each == token]
    if len(positions) != len(boxes):
        raise ModelError(
            f"the rendered chat has {len(positions)} location tokens, but its turns have {len(boxes)}; the chat "
            "template or the tokenizer changes them, so boxes cannot be part of the input"
        )
    marked = list(tokens)
    for position, box in zip(positions, boxes, strict=True):
        if box is not None:
            marked[position] = RegionToken(token, box)
    return marked


def boxes_of_rows(rows: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """Return the boxes (B, T, 4) for `region_inputs`; None if no row has any.

    Args:
        rows: The tokens of each row, of which those that are no location token may differ from `ids`, as the
            placeholder of an image does.
        ids: The token ids (B, T).
        mask: The attention mask (B, T), 0 on padding.
    """
    import torch

    region = next((token for row in rows for token in row if isinstance(token, RegionToken)), None)
    if region is None:
        return None
    boxes = torch.full((*ids.shape, 4), torch.nan)
    is_location = ((ids == int(region)) & (mask == 1)).cpu()
    for index, row in enumerate(rows):
        columns = is_location[index].nonzero()[:, 0].tolist()
        tokens = [token for token in row if int(token) == int(region)]
        for column, token in zip(columns, tokens, strict=True):
            if isinstance(token, RegionToken):
                boxes[index, column] = torch.tensor(token.box)
    return boxes


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
        raise ModelError(_NO_HEADS)
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
    turns = [
        turn
        for conversation in conversations
        for turn in conversation.turns
        # Assistant's turns that are not supervised are former replies of the model.
        if (turn.role == "user" or turn.supervised) and (turn.locations or LOCATION_TOKEN in turn.text)
    ]
    if not turns or LOCATION_TOKEN not in processor.tokenizer.added_tokens_encoder:
        return
    for turn in turns:
        found = [index for index in range(len(turn.text)) if turn.text.startswith(LOCATION_TOKEN, index)]
        expected = [location.start for location in turn.locations]
        if set(found) - set(expected):
            raise control_token_error(turn.text, LOCATION_TOKEN)
        # An answer may have further locations, of boxes that are written as text.
        if turn.role == "user" and found != expected:
            raise DataError(
                f"the text {turn.text!r:.200} has {LOCATION_TOKEN!r} at {found}, but locations for {expected}", "phrase"
            )
