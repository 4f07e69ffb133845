"""Training conversations about regions and captions, which every method writes by its own form of boxes (`text.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import Method
from sam4mllm.methods.parsing import group_samples, packed_conversation
from sam4mllm.methods.text import mark_text, region_text
from sam4mllm.prompts.conversation import Conversation, training_conversation
from sam4mllm.prompts.questions import ask_grounded_caption, ask_region_caption


def region_conversations(method: Method, samples: Sequence[Sample]) -> list[Conversation]:
    """Return the conversations for region captioning of an image: a box in the question, its phrase as the answer.

    Each sample has exactly one object. A conversation has up to `method.phrases` regions, as one about phrases has
    phrases.

    Raises:
        ValueError: The samples are about several images, or one has another number of objects.

    Examples:
        >>> from pathlib import Path
        >>> from sam4mllm.data.sample import MaskObject
        >>> from sam4mllm.geometry import Box
        >>> from sam4mllm.methods.ppg import Ppg
        >>> cup = MaskObject("cup", None, Box(10, 10, 30, 30))
        >>> sample = Sample("mine/1", Path("street.jpg"), (100, 50), "the left cup", (cup,))
        >>> (conversation,) = region_conversations(Ppg(2, 1, grid=1000, phrases=5), [sample])
        >>> for turn in conversation.turns:
        ...     print(f"{turn.role}: {turn.text}")
        user: What is at [100,200,300,600]?
        assistant: the left cup
    """
    for sample in samples:
        if len(sample.objects) != 1:
            raise ValueError(f"sample {sample.id}: a region caption is about one object; got {len(sample.objects)}")
    return [
        packed_conversation(
            group[0].image,
            [
                [(region_text(method, ask_region_caption(), [each.objects[0].box], each.size_wh), each.phrase)]
                for each in group
            ],
            method.packing,
        )
        for group in group_samples(samples, method.phrases, method.packing)
    ]


def caption_conversations(method: Method, captions: Sequence[GroundedCaption]) -> list[Conversation]:
    """Return the conversations for grounded captions, each with one of them: its mentions are marked in the answer.

    Raises:
        DataError: An image of a shape that has no grid in the method's coordinates.
    """
    return [
        training_conversation(
            caption.image,
            [
                (
                    ask_grounded_caption(),
                    mark_text(method, caption.text, [(m.end, m.objects) for m in caption.mentions], caption.size_wh),
                )
            ],
        )
        for caption in captions
    ]
