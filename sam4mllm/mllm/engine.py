"""Engine protocols: conversations in, replies or yes/no probabilities out, for any program that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from sam4mllm.geometry import Box
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class DecodedLocation:
    """What the location heads decode from the state of a location token that a model generated.

    Attributes:
        box: The box, xyxy, in shares of the image's width and height; ordered and within 0 to 1.
        sam_tokens: Sparse prompt tokens for SAM, (K, C) float32.
        end: The position in the reply's text behind the token.
    """

    box: Box
    sam_tokens: torch.Tensor
    end: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The text that a model generated. `finished` is False if the limit of new tokens cut it off.

    `tokens` has an entry for each token that adds to `text`, in order: the position in `text` at which the token ends,
    and the natural logarithm of its probability. It is empty if the engine does not return log-probabilities.
    `locations` are those of the location tokens in `text`, in order, if a `LocatingEngine` was asked for them.
    """

    text: str
    finished: bool = True
    tokens: tuple[tuple[int, float], ...] = field(default=(), compare=False)
    locations: tuple[DecodedLocation, ...] = field(default=(), compare=False)

    def mean_logprob(self, start: int = 0, end: int | None = None) -> float | None:
        """Return the mean log-probability of the tokens that overlap `text[start:end]`; None if there are none."""
        logprobs, token_start = [], 0
        for token_end, logprob in self.tokens:
            if token_end > start and (end is None or token_start < end):
                logprobs.append(logprob)
            token_start = token_end
        return sum(logprobs) / len(logprobs) if logprobs else None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn at random: `samples` per conversation, from softmax(logits / `temperature`).

    The random numbers of an answer depend on `seed`, the conversation and the number of the sample alone, so the
    answers do not depend on the batch, up to the rounding of the device's arithmetic.

    Raises:
        ValueError: `samples` is below 1, or `temperature` is not above 0.
    """

    samples: int
    temperature: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.temperature > 0:
            raise ValueError(
                f"samples must be at least 1 and temperature above 0; got {self.samples}, {self.temperature}"
            )


class TokenConstraint(Protocol):
    """The state of one answer while it is generated: which tokens can continue it.

    Before each choice of a token, `forced` is called. Its tokens are appended without a choice and fed to the model in
    one pass; where it is empty, `restrict` is called, and the token is chosen from what it leaves. `accept` is called
    with every token that is appended, forced or chosen, in order. A token that ends an answer (`Mllm.end_ids`) ends it
    here too; it must be allowed where the answer is complete, and nowhere else.

    The log-probabilities of a reply are those of the model's unrestricted distribution, also of forced tokens.
    """

    def forced(self) -> list[int]:
        """Return the tokens, in order, that have no alternative from here; none if the next token is a choice."""
        ...

    def restrict(self, logits: torch.Tensor) -> None:
        """Set the logits (V,), float32 on the model's device, of tokens that cannot come next to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """Append a token to the answer."""
        ...


ConstraintFactory: TypeAlias = "Callable[[], TokenConstraint]"
"""A function that returns the constraint of a new answer; an answer is begun anew where memory ran out."""


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


@runtime_checkable
class LocatingEngine(Protocol):
    """An engine that also decodes the states of the location tokens that it generates."""

    def generate_located(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the replies of `Engine.generate`, with the location of each location token.

        Raises:
            ModelError: The model has no location heads.
        """
        ...


@runtime_checkable
class SamplingEngine(Protocol):
    """An engine that also draws several answers to a conversation at random."""

    def generate_samples(
        self, conversations: Sequence[Conversation], max_new_tokens: int, sampling: Sampling
    ) -> list[list[Reply]]:
        """Return `sampling.samples` replies to each conversation's last turn, in order."""
        ...


@runtime_checkable
class SessionEngine(Protocol):
    """An engine that can keep what it computed about images for later calls."""

    def session(self) -> AbstractContextManager[Engine]:
        """Return a context in which an engine keeps its results about images; its exit frees their memory."""
        ...


def open_session(engine: Engine) -> AbstractContextManager[Engine]:
    """Return a context with an engine that keeps what it computed about images until the exit, if `engine` can.

    Examples:
        >>> from sam4mllm.mllm.scripted_engine import ScriptedEngine
        >>> with open_session(ScriptedEngine(["No object found."])) as engine:
        ...     reply = engine.generate([], 8)
    """
    return engine.session() if isinstance(engine, SessionEngine) else nullcontext(engine)
