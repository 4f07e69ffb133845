"""Collator: make one training batch from conversations, token ids and labels together.

Loss is computed on the tokens of the supervised answers and on the token that ends each of them. The text of an answer
is the difference between the conversation rendered with the answer and the conversation rendered up to the prompt for
it, so the tokens that carry loss are those that the model generates at inference. A template's `{% generation %}` block
is not used, because it need not begin where the prompt ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation

IGNORED = -100
"""The label that torch's cross entropy ignores."""

Span = tuple[int, int]
"""Positions [start, end) of tokens in a row of `input_ids`."""


class Collator:
    """A callable that makes a batch: `input_ids`, `attention_mask` and `labels`, and the tensors of the images.

    The first three are (B, T) int64, padded on the right. Floating-point tensors are cast to the model's dtype.
    `labels` is IGNORED everywhere but on the supervised answers.

    Raises:
        DataError: (when called) An image cannot be read, or a conversation has no supervised answer.
        ModelError: (when called) The answers cannot be located in the text that the chat template renders.
    """

    def __init__(self, mllm: Mllm) -> None:
        self._processor = mllm.processor
        self._end_ids = mllm.end_ids
        self._dtype = mllm.dtype

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        inputs = model_inputs(
            self._processor,
            [messages_with_image(conversation) for conversation in conversations],
            padding_side="right",
        )
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for row, (conversation, length) in enumerate(zip(conversations, lengths, strict=True)):
            ids = inputs["input_ids"][row, :length].tolist()
            spans = answer_spans(conversation, ids, self._processor)
            labels[row, :length] = torch.tensor(label_row(conversation, ids, spans, self._end_ids))
        batch = {
            name: value.to(self._dtype) if torch.is_floating_point(value) else value for name, value in inputs.items()
        }
        return {**batch, "labels": labels}


def answer_spans(conversation: Conversation, ids: Sequence[int], processor: Any) -> list[Span]:
    """Locate the tokens of each answer in `ids`, one row of `input_ids` without padding.

    Raises:
        ModelError: The template renders earlier turns differently once later turns follow, or the processor's tokens
            are not those of the rendered text.
    """
    # 1. Tokenize the rendered text. In `ids` the image's placeholder, which comes first, has grown to many tokens, so
    #    positions are shifted by the difference of the lengths.
    full = processor.apply_chat_template(conversation.messages(), tokenize=False)
    encoded = processor.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    text_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    shift = len(ids) - len(text_ids)
    # 2. For each answer, find the characters between the prompt for it and its end, and the tokens of these characters.
    spans = []
    for turn in range(1, len(conversation.turns), 2):
        before = processor.apply_chat_template(conversation.messages(turn), tokenize=False, add_generation_prompt=True)
        after = full
        if turn + 1 < len(conversation.turns):
            after = processor.apply_chat_template(conversation.messages(turn + 1), tokenize=False)
        if not (full.startswith(before) and full.startswith(after)):
            raise ModelError(
                "the chat template renders earlier turns differently once later turns follow, so the tokens trained on "
                "would not be those of the prompt at inference; use method.name=ppg with method.phrases=1"
            )
        end = len(after.rstrip())
        inside = [index for index, (start, stop) in enumerate(offsets) if stop > len(before) and start < end]
        spans.append((inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0))
    # 3. Check that from the first answer on both token sequences are equal, as the shift assumes.
    first = min((start for start, end in spans if end), default=len(ids))
    if list(ids[first:]) != list(text_ids[first - shift :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so the answers cannot be located; this model "
            "cannot be trained"
        )
    return spans


def label_row(
    conversation: Conversation, ids: Sequence[int], spans: Sequence[Span], end_ids: Sequence[int]
) -> list[int]:
    """Return the labels of one row: `ids` on the supervised answers, IGNORED elsewhere.

    The token that ends the turn belongs to its answer: without it a model would not learn to stop.

    Raises:
        DataError: The conversation has no supervised turn, or an answer has no token.
        ModelError: An answer does not end with one of `end_ids`.
    """
    labels = [IGNORED] * len(ids)
    for turn, (start, end) in zip(conversation.turns[1::2], spans, strict=True):
        if not turn.supervised:
            continue
        if start == end:
            raise DataError(f"{describe(conversation)}: the answer {turn.text!r} has no tokens to train on")
        if ids[end - 1] not in end_ids:
            raise ModelError(
                f"the chat template ends an answer with none of the model's end tokens ({list(end_ids)}), so the model "
                "would not learn to stop; put one of them after the assistant's text in the template"
            )
        labels[start:end] = ids[start:end]
    if all(label == IGNORED for label in labels):
        raise DataError(f"{describe(conversation)}: no answer in this conversation is supervised; nothing to train on")
    return labels


def describe(conversation: Conversation) -> str:
    """Return the image's path, or its type where it has none, and the first question, shortened."""
    image = conversation.image
    name = f"image {image if not hasattr(image, 'size') else type(image).__name__}" if image is not None else "no image"
    question = conversation.turns[0].text
    return f"image {name}, {question if len(question) <= 120 else question[:117] + '...'!r}"
