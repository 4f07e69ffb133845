"""Method: how a model is taught to name a region and how it is asked for one.

Nothing outside `methods/` assumes that an answer is text with a box and points: what leaves a method is SAM prompts
with a status, or conversations to learn. This module knows no text form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sam4mllm.data.fields import check_phrase
from sam4mllm.data.predictions import Confidence
from sam4mllm.data.sample import Sample
from sam4mllm.geometry import SamPrompt
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.conversation import Conversation

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Question:
    """A phrase about an image of `size_wh` pixels; `image` is a file, a PIL image or an array (H, W, 3) uint8 RGB.

    Raises:
        DataError: a phrase too long to be one.
    """

    image: str | Path | Image | npt.NDArray[np.uint8]
    phrase: str
    size_wh: tuple[int, int]

    def __post_init__(self) -> None:
        check_phrase(self.phrase, "question")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered. `prompts` is empty unless `status` is "ok"; `reason` is None unless it is "malformed".

    `evidence` is what the model itself says for each prompt, in their order, and, as the only one, for "no_object".
    """

    status: Literal["ok", "no_object", "malformed"]
    prompts: tuple[SamPrompt, ...]
    text: str
    reason: str | None = None
    confidence: tuple[Confidence, ...] = ()


class PromptTarget(Protocol):
    """The part of a stored target (`targets.store.ObjectTarget`) that methods read: prompts, the best one first."""

    @property
    def prompts(self) -> Sequence[SamPrompt]: ...


class Method(Protocol):
    """A way to teach regions to an MLLM and to ask for them."""

    name: str
    needs_targets: bool
    """Whether it teaches what SAM chose, so that the targets must be there."""
    needs_probabilities: bool
    """Whether it needs the probabilities of yes and no, which not every engine gives (`mllm.engine.ScoringEngine`)."""

    def settings(self) -> dict[str, Any]:
        """All that `methods.method_from_settings` needs to make this method again; plain JSON, `name` included."""
        ...

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """The conversations that teach the phrases of one image. `targets` is by object id.

        A phrase one of whose objects has no target is left out: half of its objects would be a wrong answer.
        """
        ...

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        """What is taught about the sample's objects, as prompts in pixels: to be looked at."""
        ...

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """The model's answers, in the order of the questions, with prompts in pixels of each image."""
        ...


def has_targets(sample: Sample, targets: Mapping[str, PromptTarget]) -> bool:
    """Whether every object that the phrase means can be taught: by its target, or, where it has no mask, by its box.

    True for a phrase that means nothing.
    """
    return all(item.rle is None or (item.id in targets and targets[item.id].prompts) for item in sample.objects)
