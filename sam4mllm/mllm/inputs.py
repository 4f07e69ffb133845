"""Model inputs from conversations: open the images, render the chat template, tokenize and pad.

Training and inference both use these functions, so a model gets its input in the same form in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sam4mllm.data.images import as_rgb
from sam4mllm.errors import DataError
from sam4mllm.mllm.control_tokens import check_messages
from sam4mllm.prompts.conversation import Conversation


def messages_with_image(conversation: Conversation, turns: int | None = None) -> list[dict[str, Any]]:
    """Return the first `turns` turns (all for None) as messages for a processor, with the opened image, if any.

    Raises:
        DataError: The image cannot be read.
    """
    from PIL import Image

    messages = conversation.messages(turns)
    if conversation.image is not None:
        messages[0]["content"][0]["image"] = Image.fromarray(as_rgb(conversation.image))
    return messages


def model_inputs(
    processor: Any,
    messages: Sequence[list[dict[str, Any]]],
    *,
    padding_side: Literal["left", "right"],
    add_generation_prompt: bool = False,
) -> Any:
    """Return a padded batch (`BatchFeature`): `input_ids` and `attention_mask` (B, T), and the images' tensors.

    Conversations without an image may share a batch with others; a batch without images has no tensors of images.

    Raises:
        DataError: A text holds a control token, or the processor refuses an image (of extreme aspect ratio, for
            example).
    """
    check_messages(processor, messages)
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
        images = [part["image"] for chat in messages for part in chat[0]["content"] if "image" in part]
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        what = f"an image (of {sizes} pixels), or its text" if images else "a text"
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the model's processor refuses {what}: {reason}") from error
