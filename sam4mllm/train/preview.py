"""One conversation as it would be learned: its text and its tokens, counted by the collator or guessed from characters.

This module knows no weights and trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Recipe

# Where there is no processor: about how many characters a token of a question and of an answer (mostly digits) has, how
# many tokens frame a turn, and how many pixels of an image a token has (Qwen2.5-VL's).
_QUESTION, _ANSWER, _TURN, _IMAGE = 4.0, 1.5, 5, 28 * 28


@dataclass(frozen=True, slots=True)
class ConversationPreview:
    """One conversation as it would be learned: the rendered text, its tokens in all and those that carry loss.

    `learned` is None where tokens are estimated, `patches` where the patches of its image are not known.
    """

    image: str
    text: str
    tokens: int
    learned: int | None
    patches: float | None = None


def preview_conversation(conversation: Conversation, mllm: Mllm | None, recipe: Recipe) -> ConversationPreview:
    """A conversation through the collator of the training; without a model by its characters and pixels.

    Raises:
        DataError, ModelError: as the collator.
    """
    from sam4mllm.data.images import as_rgb
    from sam4mllm.train.collator import Collator
    from sam4mllm.train.estimate import eyes_of
    from sam4mllm.train.labels import IGNORED

    image = str(conversation.image)
    if mllm is None:
        area = float(as_rgb(conversation.image)[..., 0].size)
        area = min(max(area, recipe.model.min_pixels or 0.0), recipe.model.max_pixels or area)
        text = "\n".join(f"{turn.role}: {turn.text}" for turn in conversation.turns)
        return ConversationPreview(image, text, round(_text_tokens(conversation) + area / _IMAGE), None)
    batch = Collator(mllm)([conversation])
    text = mllm.processor.apply_chat_template(conversation.messages(), tokenize=False)
    _, patch = eyes_of(mllm.model.get_base_model())
    pixels = batch.get("pixel_values")
    return ConversationPreview(
        image,
        text,
        tokens=int(batch["attention_mask"].sum()),
        learned=int((batch["labels"] != IGNORED).sum()),
        patches=None if patch is None or pixels is None else pixels.numel() / patch,
    )


def characters(conversation: Conversation) -> int:
    """The length of all that is said."""
    return sum(len(turn.text) for turn in conversation.turns)


def _text_tokens(conversation: Conversation) -> float:
    return sum(_TURN + len(turn.text) / (_QUESTION if turn.role == "user" else _ANSWER) for turn in conversation.turns)
