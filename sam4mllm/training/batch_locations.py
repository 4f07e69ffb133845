"""BatchLocations: where the locations of a batch's turns are in its token rows, and what they mean.

A location in a supervised answer is the place of a state: that of its location token, or, for a regression loss on
boxes in text, of the token that opens the box. A location in a question is a region whose embedding is part of the
input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sam4mllm.errors import ModelError
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, Location

LOCATIONS = "locations"
"""The name of the BatchLocations in a batch; they are no argument of a model."""


@dataclass(frozen=True, slots=True)
class LocatedToken:
    """The token of a location: its index in a row of token ids, and whether a question has it."""

    location: Location
    index: int
    is_region: bool


@dataclass(frozen=True, slots=True)
class BatchLocations:
    """The locations of a batch: N in supervised answers and M in questions, in the order of rows and tokens.

    Attributes:
        positions: (N, 2) int64, row and column of each answer's location in `input_ids`.
        boxes: (N, 4) float32, xyxy in shares of the image's width and height.
        rles: The N masks as COCO's RLE, None for those that are not known.
        images: The image of each row, None for a row without.
        region_positions: (M, 2) int64.
        region_boxes: (M, 4) float32.
    """

    positions: torch.Tensor
    boxes: torch.Tensor
    rles: tuple[Mapping[str, Any] | None, ...]
    images: tuple[Any, ...]
    region_positions: torch.Tensor
    region_boxes: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[LocatedToken]], images: Sequence[Any]) -> BatchLocations:
        """Return the locations of a batch from those of each row and its image."""
        answers = [(row, token) for row, tokens in enumerate(rows) for token in tokens if not token.is_region]
        regions = [(row, token) for row, tokens in enumerate(rows) for token in tokens if token.is_region]
        rles = tuple(token.location.rle for _, token in answers)
        return cls(*_tensors(answers), rles, tuple(images), *_tensors(regions))

    @property
    def masks(self) -> int:
        """The number of locations whose mask is known."""
        return sum(rle is not None for rle in self.rles)

    def region_grid(self, rows: int, columns: int) -> torch.Tensor | None:
        """Return the regions' boxes at their positions in (rows, columns, 4), NaN elsewhere; None without regions."""
        if not len(self.region_positions):
            return None
        grid = torch.full((rows, columns, 4), torch.nan)
        grid[self.region_positions[:, 0], self.region_positions[:, 1]] = self.region_boxes
        return grid


def located_tokens(
    conversation: Conversation, ids: Sequence[int], processor: Any, location_id: int | None
) -> list[LocatedToken]:
    """Locate the tokens of a conversation's locations in `ids`, its row of `input_ids` without padding.

    Locations in answers that are not supervised are left out. `location_id` is the id of the location token, if the
    model has one.

    Raises:
        ModelError: The text of a turn is not in the text that the template renders, or the tokens are not its own.
    """
    if not any(turn.locations for turn in conversation.turns):
        return []
    full = processor.apply_chat_template(conversation.messages(), tokenize=False)
    encoded = processor.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    text_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # In `ids` the placeholder of the image, which comes first, has grown to many tokens.
    shift = len(ids) - len(text_ids)
    found = []
    for number, turn in enumerate(conversation.turns):
        is_region = turn.role == "user"
        if not turn.locations or not (is_region or turn.supervised):
            continue
        start = _start_of(conversation, number, full, processor)
        for location in turn.locations:
            place = start + location.start
            index = next((i for i, (first, end) in enumerate(offsets) if first <= place < end), None)
            is_marker = turn.text.startswith(LOCATION_TOKEN, location.start)
            if (
                index is None
                or ids[index + shift] != text_ids[index]
                or (is_marker and location_id is not None and text_ids[index] != location_id)
            ):
                raise ModelError(
                    f"the processor's tokens are not those of the rendered chat, so the location in "
                    f"{turn.text[max(0, location.start - 40) :][:80]!r} cannot be found; this model cannot be trained "
                    "on locations"
                )
            found.append(LocatedToken(location, index + shift, is_region))
    return found


def _start_of(conversation: Conversation, number: int, full: str, processor: Any) -> int:
    """Return the index in `full`, the rendered chat, at which the text of a turn begins, white space included."""
    text = conversation.turns[number].text
    stripped = text.strip()
    # The prompt for an answer ends with its question, and the answer follows it.
    turns = number if number % 2 else number + 1
    prompt = processor.apply_chat_template(conversation.messages(turns), tokenize=False, add_generation_prompt=True)
    start = full.find(stripped, len(prompt)) if number % 2 else full.rfind(stripped, 0, len(prompt))
    if start < 0:
        raise ModelError(
            f"the chat template does not render the text {text[:80]!r} as it is, so its locations cannot be found; "
            "this model cannot be trained on locations"
        )
    return start - (len(text) - len(text.lstrip()))


def _tensors(tokens: Sequence[tuple[int, LocatedToken]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions (N, 2) int64 and boxes (N, 4) float32 of tokens, given with their rows."""
    positions = torch.tensor([[row, token.index] for row, token in tokens], dtype=torch.int64).reshape(-1, 2)
    boxes = torch.tensor([tuple(token.location.box) for _, token in tokens], dtype=torch.float32).reshape(-1, 4)
    return positions, boxes
