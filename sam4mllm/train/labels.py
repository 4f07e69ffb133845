"""Which tokens of a conversation carry loss: those of its supervised answers and the token that ends each of them.

An answer is what the conversation rendered up to and with it has more than the conversation rendered up to the prompt
for it, so what is learned follows what is asked. What a template marks by `{% generation %}` is not looked at: it need
not begin where a prompt ends. This module knows no models and no images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam4mllm.errors import DataError, ModelError
from sam4mllm.prompts.conversation import Conversation

IGNORED = -100
"""The label that torch's cross entropy leaves out."""

Span = tuple[int, int]
"""Positions [start, end) of tokens in a row of `input_ids`."""


def answer_spans(conversation: Conversation, ids: Sequence[int], processor: Any) -> list[Span]:
    """The tokens of each answer. `ids` is one row without padding.

    The image comes first and its placeholder grows to many tokens, so places are counted from the end of the row,
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
                "the chat template renders earlier turns otherwise once later ones follow, so what is trained would "
                "not be what is asked; teach ppg with method.phrases=1"
            )
        end = len(after.rstrip())
        inside = [place for place, (start, stop) in enumerate(offsets) if stop > len(before) and start < end]
        spans.append((inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0))
    first = min((start for start, end in spans if end), default=len(ids))
    if list(ids[first:]) != list(text_ids[first - shift :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so the answers cannot be told apart, and this "
            "model cannot be taught"
        )
    return spans


def label_row(
    conversation: Conversation, ids: Sequence[int], spans: Sequence[Span], end_ids: Sequence[int]
) -> list[int]:
    """The labels of one row: `ids` where a supervised answer stands, IGNORED elsewhere.

    The token that ends the turn belongs to its answer: without it a model would not learn to stop.

    Raises:
        DataError: the conversation has no supervised turn, or an answer has no token.
        ModelError: an answer that no such token ends.
    """
    labels = [IGNORED] * len(ids)
    for turn, (start, end) in zip(conversation.turns[1::2], spans, strict=True):
        if not turn.supervised:
            continue
        if start == end:
            raise DataError(f"{_name(conversation)}: the answer {turn.text!r} has no token to learn")
        if ids[end - 1] not in end_ids:
            raise ModelError(
                f"the chat template ends an answer by none of the tokens at which the model stops ({list(end_ids)}), "
                "so it would not learn to stop; put one behind the assistant's text in the template"
            )
        labels[start:end] = ids[start:end]
    if all(label == IGNORED for label in labels):
        raise DataError(
            f"{_name(conversation)}: nothing in this conversation is supervised, so there is nothing to learn"
        )
    return labels


def _name(conversation: Conversation) -> str:
    """The image's file, or its kind, and the first question."""
    image = conversation.image
    name = str(image) if not hasattr(image, "size") else type(image).__name__
    return f"image {name}, {conversation.turns[0].text!r}"
