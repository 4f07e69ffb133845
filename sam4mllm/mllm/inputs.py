"""Conversations to the tensors that a model takes: images opened, chat template rendered, text tokenised and padded.

Training and generation both pass here, so what is taught and what is asked are fed in alike. This module knows no
labels and no answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sam4mllm.data.images import as_rgb
from sam4mllm.errors import DataError
from sam4mllm.prompts.conversation import Conversation


def messages_with_image(conversation: Conversation, turns: int | None = None) -> list[dict[str, Any]]:
    """The first `turns` turns (all for None) as messages that carry the opened image.

    Raises:
        DataError: the image cannot be read.
    """
    from PIL import Image

    messages = conversation.messages(turns)
    messages[0]["content"][0]["image"] = Image.fromarray(as_rgb(conversation.image))
    return messages


def model_inputs(
    processor: Any,
    messages: Sequence[list[dict[str, Any]]],
    *,
    padding_side: Literal["left", "right"],
    add_generation_prompt: bool = False,
) -> Any:
    """A padded batch (`BatchFeature`) of conversations: `input_ids` and `attention_mask` (B, T), the images' tensors.

    Raises:
        DataError: the processor refuses an image (a very long and thin one, say) or a text (with the sign that it
            keeps for images).
    """
    try:
        return processor.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": padding_side},
        )
    except ValueError as error:
        sizes = ", ".join("{} x {}".format(*said[0]["content"][0]["image"].size) for said in messages)
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the model's processor refuses an image (of {sizes} pixels), or its text: {reason}") from error
