"""Collator: conversations to one training batch, token ids and labels made together.

It takes images with several phrases, that is, conversations of several answers. It knows neither the grammar of the
answers nor the model beyond the type of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.train.labels import IGNORED, answer_spans, label_row


class Collator:
    """Makes `input_ids`, `attention_mask` and `labels` (B, T), padded right, and the images' tensors.

    Tensors of floats come in the model's dtype.
    Labels are IGNORED everywhere but on the supervised answers; a conversation without one is an error, never a batch
    row that teaches nothing.

    Raises:
        DataError: (when called) an image cannot be read, or a conversation has nothing to learn.
        ModelError: (when called) the chat template does not let the answers be told apart.
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
