"""The interface of a method: its training conversations, and how a model is asked for the objects of a phrase.

Only `methods/` depends on how answers are written: a method returns SAM prompts with a status, and conversations to
train on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sam4mllm.data.predictions import Confidence
from sam4mllm.data.records import check_phrase
from sam4mllm.data.sample import Sample
from sam4mllm.geometry import SamPrompt
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.answer_form import AnswerForm, LocationForm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Packing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Question:
    """A phrase about an image of `size_wh` pixels.

    `image` is a file, a PIL image or an array (H, W, 3) uint8 RGB.

    Raises:
        DataError: The phrase is too long for a referring expression.
    """

    image: str | Path | Image | npt.NDArray[np.uint8]
    phrase: str
    size_wh: tuple[int, int]

    def __post_init__(self) -> None:
        check_phrase(self.phrase, "question")


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's parsed answer to a question.

    `prompts` are the objects, in pixels of the image; empty unless `status` is "ok". `text` is what the model
    generated. `reason` is why an answer is "malformed", None for any other status. `confidence` has one entry for each
    prompt, in their order, or a single entry for "no_object". `sam_tokens` is empty or has, for each prompt, further
    sparse prompt tokens for SAM, (K, C) float32; with `tokens_alone` SAM gets them without the prompts' boxes.
    """

    status: Literal["ok", "no_object", "malformed"]
    prompts: tuple[SamPrompt, ...]
    text: str
    reason: str | None = None
    confidence: tuple[Confidence, ...] = ()
    sam_tokens: tuple[torch.Tensor, ...] = field(default=(), compare=False)
    tokens_alone: bool = False


class PromptTarget(Protocol):
    """The part of a stored target (`targets.store.ObjectTarget`) that methods use: its prompts, the best one first."""

    @property
    def prompts(self) -> Sequence[SamPrompt]: ...


class Method(Protocol):
    """A way to train an MLLM to locate objects, and to ask it for them at inference."""

    name: str
    needs_targets: bool
    """Whether it trains on the prompts that SAM selects, so that the target store must hold them."""
    needs_probabilities: bool
    """Whether it needs yes/no probabilities, which only a `mllm.engine.ScoringEngine` returns."""
    needs_locations: bool
    """Whether its answers hold location tokens, which only a `mllm.engine.LocatingEngine` decodes."""

    @property
    def phrases(self) -> int:
        """The maximum number of phrases in one training conversation."""
        ...

    @property
    def packing(self) -> Packing:
        """How a training conversation holds its phrases."""
        ...

    @property
    def needs_prompt_tokens(self) -> bool:
        """Whether SAM gets prompt tokens of locations, which only some segmenters take."""
        ...

    @property
    def tokens_alone(self) -> bool:
        """Whether SAM gets these prompt tokens without the boxes."""
        ...

    @property
    def answer_form(self) -> AnswerForm | LocationForm:
        """The form of the answers that `ask` generates, to which they can be constrained."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the settings, `name` included, from which `registry.method_from_settings` builds an equal method."""
        ...

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """Return the training conversations about the samples of one image. `targets` is keyed by object id.

        If a method needs targets, it skips a phrase one of whose objects has none: an answer that names only some of
        the objects would be a wrong training target.
        """
        ...

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        """Return the prompts in the sample's training targets, in pixels of the image, to be drawn by `inspect`."""
        ...

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """Return the model's answers in the order of the questions; prompts are in pixels of each image."""
        ...


def has_targets(sample: Sample, targets: Mapping[str, PromptTarget]) -> bool:
    """Return whether every object of a phrase has a training target: a stored one, or its box if it has no mask.

    It is True for a phrase without objects.
    """
    return all(item.rle is None or (item.id in targets and targets[item.id].prompts) for item in sample.objects)
