"""Conversation: one image, then the turns about it, and which turns a model learns to say.

Several phrases of one image may stand in one conversation, as question and answer in turn. This module knows no
tokens, no template and no model: it ends at the messages that a chat template takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says. `supervised` marks the text whose tokens carry loss.

    Raises:
        ValueError: an unknown role; a supervised turn that is not the assistant's.
    """

    role: Role
    text: str
    supervised: bool = False

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise ValueError(f'a turn is said by "user" or "assistant"; got {self.role!r}')
        if self.supervised and self.role != "assistant":
            raise ValueError(f"only the assistant's turns can be supervised; got a user turn {self.text!r}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """An image and the turns about it, the user's first, then in alternation.

    `image` is a file, a PIL image or an array (H, W, 3) uint8 RGB; it is carried, not opened.

    Raises:
        ValueError: no turn; turns that do not alternate or do not open with the user's.
    """

    image: str | Path | Image | npt.NDArray[np.uint8]
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        expected = [("user", "assistant")[index % 2] for index in range(len(roles))]
        if not roles or roles != expected:
            raise ValueError(f"the turns of a conversation alternate and open with the user's; got {roles}")

    @property
    def asks(self) -> bool:
        """Whether the last word is the user's, so that a model has something to answer."""
        return self.turns[-1].role == "user"

    def messages(self, turns: int | None = None) -> list[dict[str, Any]]:
        """The first `turns` turns (all for None) as a chat template takes them: the image opens the first one.

        The image stands as `{"type": "image"}`; the processor gets `image` itself beside the messages.

        Raises:
            ValueError: `turns` leaves no turn.
        """
        chosen = self.turns[:turns]
        if not chosen:
            raise ValueError(f"messages need at least one turn; got turns={turns}")
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in chosen
        ]
        messages[0]["content"].insert(0, {"type": "image"})
        return messages


def asking(image: str | Path | Image | npt.NDArray[np.uint8], question: str) -> Conversation:
    """A conversation that waits for the answer to one question."""
    return Conversation(image, (Turn("user", question),))


def teaching(image: str | Path | Image | npt.NDArray[np.uint8], exchanges: list[tuple[str, str]]) -> Conversation:
    """A conversation of (question, answer) pairs about one image, every answer supervised.

    Raises:
        ValueError: no pair.
    """
    turns = [
        turn
        for question, answer in exchanges
        for turn in (Turn("user", question), Turn("assistant", answer, supervised=True))
    ]
    return Conversation(image, tuple(turns))
