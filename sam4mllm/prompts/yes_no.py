"""Yes and no: questions that are answered so, several things at once, and the text of the answers.

    answer   ("yes" | "no") (", " ("yes" | "no"))*

This module knows no tokens and no model; `mllm/yes_no.py` weighs the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sam4mllm.prompts.conversation import Conversation

YES, NO = "yes", "no"
SEPARATOR = ", "


class YesNo(NamedTuple):
    """The probabilities that a model gives to yes and to no; the rest of the vocabulary has what is left of 1."""

    yes: float
    no: float


@dataclass(frozen=True, slots=True)
class YesNoQuestion:
    """A question about `count` things, each of which is answered by yes or no."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class YesNoQuery:
    """Questions that are put after the same conversation, each as if it were the only one.

    Raises:
        ValueError: a conversation whose last word is not the assistant's; a question about nothing.
    """

    history: Conversation
    questions: tuple[YesNoQuestion, ...]

    def __post_init__(self) -> None:
        if self.history.asks:
            raise ValueError(f"an inquiry follows an answer; got {self.history.turns[-1]}")
        if any(question.count < 1 for question in self.questions):
            raise ValueError(f"a question is about one thing at least; got {self.questions}")


def write_answers(answers: Sequence[bool]) -> str:
    """The text of the answers, in their order."""
    return SEPARATOR.join(YES if answer else NO for answer in answers)
