"""Constrained decoding: the form of answers as an automaton over the tokens of a model's tokenizer.

llguidance computes which tokens can come next, and which have no alternative. A token is allowed if the text with it is
the beginning of an answer of the form, so a model that writes such an answer anyway is not changed by the constraint.
Forced tokens are those into which the tokenizer itself divides the text that must come next, without those that could
be divided otherwise together with what follows; a model has seen them in training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sam4mllm.errors import ModelError
from sam4mllm.mllm.chat_template import around_answers
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.answer_form import AnswerForm, LocationForm

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher, LLTokenizer

_MAX_GRAMMARS = 512
"""Grammars that are kept; there is one for each size of the resized image where coordinates are its pixels."""


class AnswerConstraint:
    """The state of one answer of a form while it is generated; it implements `engine.TokenConstraint`."""

    def __init__(self, matcher: LLMatcher, allowed: _AllowedTokens) -> None:
        self._matcher = matcher
        self._allowed = allowed

    def forced(self) -> list[int]:
        """Return the tokens, in order, that have no alternative from here; none if the next token is a choice."""
        return self._matcher.compute_ff_tokens()

    def restrict(self, logits: torch.Tensor) -> None:
        """Set the logits (V,) of tokens that cannot come next to -inf, in place."""
        allowed = self._allowed(self._matcher.compute_bitmask(), logits)
        kept = logits[allowed]
        logits.fill_(float("-inf"))
        logits[allowed] = kept

    def accept(self, token: int) -> None:
        """Append a token to the answer.

        Raises:
            ValueError: The token cannot come next.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} cannot continue the answer: {self._matcher.get_error()}")


class AnswerConstraints:
    """The constraints of a model's answers; grammars that were compiled once are kept.

    Args:
        tokenizer: The tokenizer.
        end_ids: The tokens that end an answer.
        around: The text between prompt and answer, and between the answer and its end token.

    Raises:
        ModelError: llguidance does not support the tokenizer.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int], around: tuple[str, str] = ("", "")) -> None:
        self._vocabulary = tokenizer.get_vocab()
        self._tokenizer = _token_automaton(tokenizer, end_ids)
        self._around = around
        self._allowed = _AllowedTokens()
        self._matcher = functools.lru_cache(_MAX_GRAMMARS)(self._compile)

    def __call__(self, form: AnswerForm | LocationForm, size_wh: tuple[int, int]) -> AnswerConstraint:
        """Return the constraint of a new answer about an image of `size_wh` pixels.

        Raises:
            DataError: An image of a shape that has no grid in this format.
        """
        tag, end_tag = (self._expression(tag) for tag in form.tags)
        grammar = form.lark(size_wh, (tag, end_tag), *self._around)
        return AnswerConstraint(self._matcher(grammar).deep_copy(), self._allowed)

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar))
        if matcher.is_error():
            raise AssertionError(f"the grammar of answers does not compile: {matcher.get_error()}\n{grammar}")
        return matcher

    def _expression(self, tag: str) -> str:
        """Return a tag in the dialect of `AnswerForm.lark`: a special token by its id, any other text as a string."""
        token = self._vocabulary.get(tag)
        return AnswerForm.text(tag) if token is None or not self._tokenizer.is_special_token(token) else f"<[{token}]>"


class _AllowedTokens:
    """The ids of allowed tokens as tensors, by the bits from which they were read; few masks occur again and again."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[bytes, torch.device, int], torch.Tensor] = {}

    def __call__(self, bits: bytes, logits: torch.Tensor) -> torch.Tensor:
        """Return the ids, on the device of the logits (V,); a tokenizer may have tokens that the model does not."""
        import numpy as np
        import torch

        key = (bits, logits.device, len(logits))
        if key not in self._tensors:
            ids = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))
            if len(self._tensors) >= _MAX_GRAMMARS:
                self._tensors.clear()
            self._tensors[key] = torch.from_numpy(ids[ids < len(logits)]).to(logits.device)
        return self._tensors[key]


_OF_TOKENIZER: WeakKeyDictionary[Any, dict[object, AnswerConstraints]] = WeakKeyDictionary()


def answer_constraints(mllm: Mllm) -> AnswerConstraints:
    """Return the constraints of a model's answers, the same ones in every call until tokens are added to its tokenizer.

    Raises:
        ModelError: llguidance does not support the tokenizer.
    """
    tokenizer, end_ids, around = mllm.processor.tokenizer, tuple(mllm.end_ids), around_answers(mllm.processor)
    of_tokenizer = _OF_TOKENIZER.setdefault(tokenizer, {})
    key = (end_ids, around, len(tokenizer), tuple(tokenizer.all_special_ids))
    if key not in of_tokenizer:
        of_tokenizer[key] = AnswerConstraints(tokenizer, end_ids, around)
    return of_tokenizer[key]


def _token_automaton(tokenizer: Any, end_ids: Sequence[int]) -> LLTokenizer:
    """Return llguidance's form of a tokenizer."""
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=list(end_ids))
    except ValueError as error:
        name = type(tokenizer).__name__
        raise ModelError(f"llguidance does not support the tokenizer {name}: {error}") from error
