"""Engine protocols: conversations in, replies or yes/no probabilities out, for any program that runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery


@dataclass(frozen=True, slots=True)
class Reply:
    """The text that a model generated. `finished` is False if the limit of new tokens cut it off.

    `tokens` has an entry for each token that adds to `text`, in order: the position in `text` at which the token ends,
    and the natural logarithm of its probability. It is empty if the engine does not return log-probabilities.
    """

    text: str
    finished: bool = True
    tokens: tuple[tuple[int, float], ...] = field(default=(), compare=False)

    def mean_logprob(self, start: int = 0, end: int | None = None) -> float | None:
        """Return the mean log-probability of the tokens that overlap `text[start:end]`; None if there are none."""
        logprobs, token_start = [], 0
        for token_end, logprob in self.tokens:
            if token_end > start and (end is None or token_start < end):
                logprobs.append(logprob)
            token_start = token_end
        return sum(logprobs) / len(logprobs) if logprobs else None


class Engine(Protocol):
    """A program that answers conversations; it may encode an image once for all conversations about it."""

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the reply to each conversation's last turn, in order, of at most `max_new_tokens` tokens each."""
        ...


@runtime_checkable
class ScoringEngine(Protocol):
    """An engine that also returns the model's probabilities of yes and no."""

    def score_answers(self, queries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """Return, for each query and each of its questions, the probabilities of each of its answers."""
        ...
