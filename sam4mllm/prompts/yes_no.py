"""Yes/no questions about several points at once (PQPP's second round), and the text of their answers.

    answer   ("yes" | "no") (", " ("yes" | "no"))*

`sam4mllm.mllm.point_scoring` computes the probabilities of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sam4mllm.prompts.conversation import Conversation

YES, NO = "yes", "no"
SEPARATOR = ", "


class YesNo(NamedTuple):
    """The model's probabilities of yes and of no; their sum is below 1, as other tokens have a probability, too."""

    yes: float
    no: float


@dataclass(frozen=True, slots=True)
class YesNoQuestion:
    """A question about `count` points, each answered by yes or no."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class YesNoQuery:
    """Questions that follow the same conversation, independently of each other.

    Raises:
        ValueError: A conversation whose last turn is not the assistant's, or a question with a count of 0.
    """

    history: Conversation
    questions: tuple[YesNoQuestion, ...]

    def __post_init__(self) -> None:
        if self.history.awaits_answer:
            raise ValueError(f"a yes/no query follows an answer; got {self.history.turns[-1]}")
        if any(question.count < 1 for question in self.questions):
            raise ValueError(f"a yes/no question is about at least one point; got {self.questions}")


def write_answers(answers: Sequence[bool]) -> str:
    """Return the text of the answers in order."""
    return SEPARATOR.join(YES if answer else NO for answer in answers)
