"""Conversation: an image and the turns of user and assistant about it, as messages for a chat template.

Chat may have no image. One conversation may hold several phrases of its image, as question and answer in turn; later
phrases see earlier ones. In a conversation of several branches, each branch is a conversation of its own that does not
see the others; in training they share the tokens of the image in one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sam4mllm.geometry import Box

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["user", "assistant"]

LOCATION_TOKEN = "<location>"
"""The text of the token whose embedding is a location in the image, for methods with location heads."""


@dataclass(frozen=True, slots=True)
class Location:
    """A region of the image that a turn's text marks, for methods that represent locations as embeddings.

    Attributes:
        box: The region's box, xyxy, in shares (0 to 1) of the image's width and height.
        start: The index in the turn's text of the marker's first character.
        rle: The region's mask as COCO's RLE at the image's size, for the loss of masks; None if it is not known.
    """

    box: Box
    start: int
    rle: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LocatedText:
    """A text with the regions that it marks, in the order of their markers."""

    text: str
    locations: tuple[Location, ...]


Exchange: TypeAlias = "tuple[str | LocatedText, str | LocatedText]"
"""A question and its answer."""


@dataclass(frozen=True, slots=True, repr=False)
class Turn:
    """The text of one role; the loss is taken on the tokens of `supervised` turns only.

    `locations` are the regions that the text marks, in the order of their markers.

    Raises:
        ValueError: An unknown role, or a supervised turn that is not the assistant's.
    """

    role: Role
    text: str
    supervised: bool = False
    locations: tuple[Location, ...] = ()

    def __repr__(self) -> str:
        """Return all fields; without locations the text is that of a turn that cannot have any, as digests need."""
        located = f", locations={self.locations!r}" if self.locations else ""
        return f"Turn(role={self.role!r}, text={self.text!r}, supervised={self.supervised!r}{located})"

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise ValueError(f'the role of a turn is "user" or "assistant"; got {self.role!r}')
        if self.supervised and self.role != "assistant":
            raise ValueError(f"only the assistant's turns can be supervised; got a user turn {self.text!r}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """An image and the turns about it, which alternate and begin with the user's.

    `image` is a path, a PIL image or an array (H, W, 3) uint8 RGB, or None for chat without an image; files are not
    opened here. `branch_starts` are the indices of the turns with which branches begin, (0,) for a single branch.

    Raises:
        ValueError: No turn, turns that do not alternate or do not begin with the user's, or a branch that does not
            begin with a turn of the user.
    """

    image: str | Path | Image | npt.NDArray[np.uint8] | None
    turns: tuple[Turn, ...]
    branch_starts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        expected = [("user", "assistant")[index % 2] for index in range(len(roles))]
        if not roles or roles != expected:
            raise ValueError(f"the turns of a conversation alternate and begin with the user's; got {roles}")
        starts = (*self.branch_starts, len(roles))
        if starts[0] != 0 or any(a >= b or a % 2 for a, b in pairwise(starts)):
            raise ValueError(f"branches begin with turn 0 and further turns of the user; got {self.branch_starts}")

    @property
    def branches(self) -> tuple[Conversation, ...]:
        """The branches as conversations of a single branch, in their order."""
        if len(self.branch_starts) == 1:
            return (self,)
        ends = (*self.branch_starts[1:], len(self.turns))
        return tuple(
            Conversation(self.image, self.turns[start:end]) for start, end in zip(self.branch_starts, ends, strict=True)
        )

    @property
    def awaits_answer(self) -> bool:
        """Whether the last turn is the user's, so that the model has to answer."""
        return self.turns[-1].role == "user"

    @property
    def has_regions(self) -> bool:
        """Whether a question marks a region of the image, of which the model gets the embedding."""
        return any(turn.locations for turn in self.turns if turn.role == "user")

    def messages(self, turns: int | None = None) -> list[dict[str, Any]]:
        """Return the first `turns` turns (all for None) as messages for a chat template; the image begins the first.

        The placeholder of the image is `{"type": "image"}`; the processor takes `image` as a separate argument.

        Raises:
            ValueError: `turns` is 0, or the conversation has several branches, which no chat template renders at once.
        """
        if len(self.branch_starts) > 1:
            raise ValueError(f"messages are those of one branch; got a conversation of {len(self.branch_starts)}")
        first_turns = self.turns[:turns]
        if not first_turns:
            raise ValueError(f"messages need at least one turn; got turns={turns}")
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in first_turns
        ]
        if self.image is not None:
            messages[0]["content"].insert(0, {"type": "image"})
        return messages


def inference_conversation(
    image: str | Path | Image | npt.NDArray[np.uint8], question: str | LocatedText
) -> Conversation:
    """Return a conversation of one question, which the model has to answer."""
    return Conversation(image, (_turn("user", question),))


def training_conversation(
    image: str | Path | Image | npt.NDArray[np.uint8] | None, exchanges: Sequence[Exchange]
) -> Conversation:
    """Return a conversation of (question, answer) pairs about one image, or none, with every answer supervised.

    Raises:
        ValueError: No pairs.
    """
    turns = [
        turn
        for question, answer in exchanges
        for turn in (_turn("user", question), _turn("assistant", answer, supervised=True))
    ]
    return Conversation(image, tuple(turns))


def isolated_conversation(
    image: str | Path | Image | npt.NDArray[np.uint8] | None, branches: Sequence[Sequence[Exchange]]
) -> Conversation:
    """Return a conversation with a branch for each list of (question, answer) pairs, every answer supervised.

    Raises:
        ValueError: No branches, or a branch without pairs.
    """
    parts = [training_conversation(image, exchanges).turns for exchanges in branches]
    starts = accumulate((len(turns) for turns in parts[:-1]), initial=0)
    return Conversation(image, tuple(turn for turns in parts for turn in turns), tuple(starts))


def _turn(role: Role, text: str | LocatedText, supervised: bool = False) -> Turn:
    if isinstance(text, str):
        return Turn(role, text, supervised)
    return Turn(role, text.text, supervised, text.locations)
