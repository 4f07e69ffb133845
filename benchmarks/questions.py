"""Questions about `shapes` scenes, for benchmarks of generation."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from typing import TYPE_CHECKING

import numpy as np

from sam4mllm.mllm.engine import Reply
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.prompts.questions import ask_boxes
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import make_scene

if TYPE_CHECKING:
    from sam4mllm.synthetic.scenes import Scene

PHRASES = 4
"""Questions per image."""


def questions_of(count: int, seed: int, per_image: int = PHRASES) -> list[Conversation]:
    """Return `count` questions about scenes, of two kinds so that their lengths differ.

    Args:
        count: The number of questions.
        seed: Of the scenes and phrases.
        per_image: The most questions about one scene.
    """
    questions: list[Conversation] = []
    number = 0
    while len(questions) < count:
        scene = make_scene(seed, number)
        texts = _phrases(scene, np.random.default_rng([seed, number, 1]), per_image)
        questions += [inference_conversation(scene.image, ask_boxes(text)) for text in texts]
        number += 1
    return questions[:count]


def _phrases(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Return up to `count` phrases about a scene."""
    drawn = [phrases_of(scene, rng, kind) for kind in ("attribute", "relation") * -(-count // 2)]
    return [phrase.text for phrase in drawn[:count] if phrase is not None]


def same_replies(baseline: Sequence[Reply], replies: Sequence[Reply]) -> float:
    """Return the share of replies that are identical to the baseline's."""
    return sum(map(eq, baseline, replies)) / len(baseline)
