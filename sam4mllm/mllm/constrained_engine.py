"""Engines whose replies have the form of an answer: all but those that the limit of tokens cuts off.

A model in this process is constrained token by token (`constraints.py`). A server gets the form as a regular expression
in the request: vLLM (from 0.11 on) in `structured_outputs`, SGLang in `regex`. They name themselves in their list of
models. `transformers serve` rejects requests with such fields.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from sam4mllm.data.images import as_rgb, size_wh_of
from sam4mllm.errors import ModelError, ServerError
from sam4mllm.mllm.constraints import answer_constraints
from sam4mllm.mllm.engine import ConstraintFactory, Engine, Reply, Sampling
from sam4mllm.mllm.server_engine import ServerEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.answer_form import AnswerForm, LocationForm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery

logger = logging.getLogger(__name__)

_SERVER_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "vllm": lambda regex: {"structured_outputs": {"regex": regex}},
    "sglang": lambda regex: {"regex": regex},
}
"""The fields of a request that constrain the answer, by the owner of the model in the server's list."""


def constrained_engine(engine: Engine, form: AnswerForm | LocationForm) -> Engine:
    """Return an engine that generates answers of `form` by the model of `engine`.

    Raises:
        ModelError: The answers of the engine cannot be constrained; see `why_unconstrained`.
    """
    if reason := why_unconstrained(engine, form):
        raise ModelError(f"answers cannot be constrained to their form: {reason}; generate without (--no-constrained)")
    if isinstance(engine, ServerEngine):
        return ConstrainedServerEngine(engine, form)
    assert isinstance(engine, TransformersEngine), "checked by why_unconstrained"
    return ConstrainedEngine(engine, form)


def why_unconstrained(engine: Engine, form: AnswerForm | LocationForm) -> str | None:
    """Return why the answers of `engine` cannot be constrained to `form`; None if they can.

    Raises:
        ServerError: A server does not answer.
    """
    if isinstance(engine, TransformersEngine):
        try:
            answer_constraints(engine.mllm)
        except ModelError as error:
            return str(error)
        return None
    if not isinstance(engine, ServerEngine):
        return f"{type(engine).__name__} has no means for it"
    if engine.owner not in _SERVER_FIELDS:
        return f"the server {engine.url} is neither vLLM nor SGLang (the owner of its model is {engine.owner!r})"
    if any(form.tags):
        return (
            f"boxes are written in {' '.join(form.tags)}, which are special tokens, and a server's regular "
            "expression cannot have special tokens"
        )
    return None


def constrains_or_warns(engine: Engine, form: AnswerForm | LocationForm) -> bool:
    """Return whether the answers of `engine` can be constrained to `form`; a warning states why they cannot.

    Raises:
        ServerError: A server does not answer.
    """
    reason = why_unconstrained(engine, form)
    if reason is not None:
        logger.warning("answers are not constrained to their form: %s", reason)
    return reason is None


class ConstrainedEngine:
    """A `TransformersEngine` whose answers have a form; it implements the same protocols."""

    def __init__(self, engine: TransformersEngine, form: AnswerForm | LocationForm) -> None:
        self._engine = engine
        self._form = form

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the replies, as `TransformersEngine.generate` does.

        Raises:
            ValueError, DataError, DeviceMemoryError: As there.
        """
        return self._engine.generate(conversations, max_new_tokens, constraints=self._constraints(conversations))

    def generate_located(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the replies with the locations of their location tokens, as `TransformersEngine` does.

        Raises:
            ValueError, DataError, ModelError, DeviceMemoryError: As there.
        """
        constraints = self._constraints(conversations)
        return self._engine.generate_located(conversations, max_new_tokens, constraints=constraints)

    def generate_samples(
        self, conversations: Sequence[Conversation], max_new_tokens: int, sampling: Sampling
    ) -> list[list[Reply]]:
        """Return several replies to each conversation, drawn from the tokens that the form allows."""
        constraints = self._constraints(conversations)
        return self._engine.generate_samples(conversations, max_new_tokens, sampling, constraints=constraints)

    def score_answers(self, queries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """Return the probabilities of yes and no, which are not generated."""
        return self._engine.score_answers(queries)

    @contextmanager
    def session(self) -> Iterator[ConstrainedEngine]:
        """Return a context with an engine that keeps what it computed about images; see `TransformersEngine`."""
        with self._engine.session() as engine:
            yield ConstrainedEngine(engine, self._form)

    def _constraints(self, conversations: Sequence[Conversation]) -> list[ConstraintFactory | None]:
        constraints = answer_constraints(self._engine.mllm)
        return [partial(constraints, self._form, _size_wh(conversation)) for conversation in conversations]


class ConstrainedServerEngine:
    """A `ServerEngine` whose requests ask for answers of a form."""

    def __init__(self, engine: ServerEngine, form: AnswerForm | LocationForm) -> None:
        self._engine = engine
        self._form = form

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the replies, as `ServerEngine.generate` does.

        Raises:
            ValueError, DataError, ModelError, ServerError: As there.
            ServerError: The server generated a complete answer of another form.
        """
        regexes = [self._form.regex(_size_wh(conversation)) for conversation in conversations]
        # Some chat templates have a space or newline between the prompt and the answer.
        fields = [_SERVER_FIELDS[self._engine.owner](rf"[ \n]?({regex})") for regex in regexes]
        replies = self._engine.generate(conversations, max_new_tokens, fields=fields)
        for reply, regex in zip(replies, regexes, strict=True):
            if reply.finished and re.fullmatch(regex, reply.text) is None:
                raise ServerError(
                    f"the server {self._engine.url} ignores the form of answers, and generated {reply.text!r:.100}; "
                    "vLLM needs to be 0.11 or newer. Generate without the form (--no-constrained)"
                )
        return replies


def _size_wh(conversation: Conversation) -> tuple[int, int]:
    """Return the size of a conversation's image in pixels, after rotation by its EXIF orientation."""
    if conversation.image is None:
        raise ValueError("an answer is constrained to the coordinates of an image; the conversation has none")
    size_wh = size_wh_of(conversation.image)
    if size_wh is None:
        # The error of reading the file states the reason.
        height, width = as_rgb(conversation.image).shape[:2]
        size_wh = width, height
    return size_wh
