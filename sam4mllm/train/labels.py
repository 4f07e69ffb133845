"""Which tokens of a conversation carry loss: those of its supervised answers and the token that ends each of them.

A template with `{% generation %}` blocks says itself which tokens are the assistant's. For any other, an answer is what
the conversation rendered up to and with it has more than the conversation rendered up to the prompt for it. This module
knows no models and no pictures.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from sam4mllm.chat.conversation import Conversation
from sam4mllm.errors import DataError, ModelError

IGNORED = -100
"""The label that torch's cross entropy leaves out."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""Positions [start, end) of tokens in a row of `input_ids`."""


def marks_answers(template: str) -> bool:
    """Whether a chat template marks the assistant's tokens; where it does not, transformers' mask is all zero."""
    return _GENERATION_BLOCK.search(template) is not None


def spans_of_mask(mask: Sequence[int]) -> list[Span]:
    """The runs of ones in a row of `assistant_masks`, one for each answer."""
    edges = [0, *mask, 0]
    starts = [place for place in range(len(mask)) if edges[place + 1] and not edges[place]]
    ends = [place + 1 for place in range(len(mask)) if edges[place + 1] and not edges[place + 2]]
    return list(zip(starts, ends, strict=True))


def spans_of_text(conversation: Conversation, ids: Sequence[int], processor: Any) -> list[Span]:
    """The tokens of each answer, found by the difference of rendered texts. `ids` is one row without padding.

    The picture comes first and its placeholder grows to many tokens, so places are counted from the end of the row,
    where the tokens of the plain text and those of the row are the same.

    Raises:
        ModelError: the template says earlier turns otherwise once later ones follow, or the processor's tokens are not
            those of the rendered text.
    """
    full = processor.apply_chat_template(conversation.messages(), tokenize=False)
    encoded = processor.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    text_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    shift = len(ids) - len(text_ids)
    spans = []
    for turn in range(1, len(conversation.turns), 2):
        before = processor.apply_chat_template(conversation.messages(turn), tokenize=False, add_generation_prompt=True)
        after = full
        if turn + 1 < len(conversation.turns):
            after = processor.apply_chat_template(conversation.messages(turn + 1), tokenize=False)
        if not (full.startswith(before) and full.startswith(after)):
            raise ModelError(
                "the chat template renders earlier turns otherwise once later ones follow, so the answers cannot be "
                "told apart; give it {% generation %} blocks, or teach ppg with method.phrases=1"
            )
        end = len(after.rstrip())
        inside = [place for place, (start, stop) in enumerate(offsets) if stop > len(before) and start < end]
        spans.append((inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0))
    first = min((start for start, end in spans if end), default=len(ids))
    if list(ids[first:]) != list(text_ids[first - shift :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so the answers cannot be told apart; "
            "give its chat template {% generation %} blocks"
        )
    return spans


def label_row(
    conversation: Conversation, ids: Sequence[int], spans: Sequence[Span], end_ids: Sequence[int]
) -> list[int]:
    """The labels of one row: `ids` where a supervised answer stands, IGNORED elsewhere.

    The token that ends the turn belongs to its answer, also where the template leaves it outside the marked block:
    without it a model would not learn to stop.

    Raises:
        DataError: the conversation has no supervised turn, or an answer has no token.
        ModelError: the template marks another number of answers than the conversation has.
    """
    answers = conversation.turns[1::2]
    if len(spans) != len(answers):
        raise ModelError(
            f"the chat template marks {len(spans)} answers in a conversation of {len(answers)}; "
            "its {% generation %} blocks must hold the assistant's turns, and all of each"
        )
    labels = [IGNORED] * len(ids)
    for turn, (start, end) in zip(answers, spans, strict=True):
        if not turn.supervised:
            continue
        if start == end:
            raise DataError(f"{_name(conversation)}: the answer {turn.text!r} has no token to learn")
        if ids[end - 1] not in end_ids and end < len(ids) and ids[end] in end_ids:
            end += 1
        if ids[end - 1] not in end_ids:
            warnings.warn(
                f"the chat template ends an answer by none of the tokens at which the model stops ({list(end_ids)}), "
                "so it may not learn to stop; put one behind the assistant's text in the template",
                stacklevel=2,
            )
        labels[start:end] = ids[start:end]
    if all(label == IGNORED for label in labels):
        raise DataError(
            f"{_name(conversation)}: nothing in this conversation is supervised, so there is nothing to learn"
        )
    return labels


def _name(conversation: Conversation) -> str:
    """The picture's file, or its kind, and the first question."""
    image = conversation.image
    picture = str(image) if not hasattr(image, "size") else type(image).__name__
    return f"picture {picture}, {conversation.turns[0].text!r}"
