"""The protocols of an engine: conversations in, replies out, whatever program runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote. `finished` is False when the limit of new tokens cut it off, so that `text` is a part.

    `tokens` are the text's tokens in turn, each as the place in `text` at which it ends and the natural logarithm of
    its probability; empty where the engine does not tell.
    """

    text: str
    finished: bool = True
    tokens: tuple[tuple[int, float], ...] = field(default=(), compare=False)

    def mean_logprob(self, start: int = 0, end: int | None = None) -> float | None:
        """The mean over the tokens that write characters of text[start:end]; None where the engine does not tell."""
        found, begins = [], 0
        for ends, logprob in self.tokens:
            if ends > start and (end is None or begins < end):
                found.append(logprob)
            begins = ends
        return sum(found) / len(found) if found else None


class Engine(Protocol):
    """Whatever answers conversations. Several may be about one image; the engine may profit from that."""

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """The reply to each conversation's last turn, in the order given, of at most `max_new_tokens` tokens each."""
        ...


@runtime_checkable
class ScoringEngine(Protocol):
    """An engine that also lets its model's own distribution be read."""

    def score_answers(self, inquiries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """For each inquiry, for each of its questions, the probabilities of each of its answers."""
        ...
