"""Phrases and questions about `shapes` scenes, and answers to them, for benchmarks of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import eq
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam4mllm.mllm.engine import Engine, Reply
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.prompts.questions import ask_boxes
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import make_scene

ANSWER = "[120,130,300,310] +(200,210)(220,230) -(130,290)"
"""The answer of a trained model, for SAM, where a random model answers."""


class FixedAnswers:
    """An engine that generates, then returns `text` in place of each answer, or the answer itself if it is None.

    Attributes:
        texts: The texts generated last.
        tokens: The number of tokens generated so far.
    """

    def __init__(self, engine: Engine, text: str | None = ANSWER) -> None:
        self._engine = engine
        self._text = text
        self.texts: list[str] = []
        self.tokens = 0

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int, **options: Any) -> list[Reply]:
        replies = self._engine.generate(conversations, max_new_tokens, **options)
        self.texts = [reply.text for reply in replies]
        self.tokens += sum(len(reply.tokens) if reply.finished else max_new_tokens for reply in replies)
        if self._text is None:
            return replies
        return [replace(reply, text=self._text, finished=True, tokens=()) for reply in replies]


def images_and_phrases(
    images: int, phrases: int, seed: int, size_wh: tuple[int, int] | None = None
) -> list[tuple[npt.NDArray[np.uint8], list[str]]]:
    """Return scenes, each with phrases of two kinds, so that their lengths differ.

    Args:
        images: The number of scenes.
        phrases: The number of phrases of each scene.
        seed: Of the scenes and phrases.
        size_wh: The size to which the scenes are enlarged; None to keep theirs.
    """
    found: list[tuple[npt.NDArray[np.uint8], list[str]]] = []
    number = 0
    while len(found) < images:
        scene, rng = make_scene(seed, number), np.random.default_rng([seed, number, 1])
        drawn = [phrases_of(scene, rng, kind) for kind in ("attribute", "relation") * phrases]
        texts = [phrase.text for phrase in drawn if phrase is not None][:phrases]
        image = scene.image
        if size_wh is not None:
            image = np.asarray(Image.fromarray(image).resize(size_wh))
        if len(texts) == phrases:
            found.append((image, texts))
        number += 1
    return found


def questions_of(count: int, seed: int, per_image: int = 4) -> list[Conversation]:
    """Return `count` questions for boxes, `per_image` of them about each scene."""
    scenes = images_and_phrases(-(-count // per_image), per_image, seed)
    questions = [inference_conversation(image, ask_boxes(text)) for image, texts in scenes for text in texts]
    return questions[:count]


def same_replies(baseline: Sequence[Reply], replies: Sequence[Reply]) -> float:
    """Return the share of replies that are identical to the baseline's."""
    return sum(map(eq, baseline, replies)) / len(baseline)
