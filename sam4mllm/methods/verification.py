"""PPG with verification, both methods in one model: PPG generates box and points, PQPP's question checks the points.

Training: the conversations of both methods. Inference: PPG's question, then PQPP's second round about the points in its
answer. A positive point is dropped if no is more probable than yes, a negative point if yes is more probable than no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.geometry import POSITIVE, Point, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question
from sam4mllm.methods.parsing import replace_points
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import Pqpp
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo


@dataclass(frozen=True, slots=True)
class PpgWithVerification:
    """PPG whose points are verified by PQPP, called `both` in recipes; the two share one coordinate convention."""

    ppg: Ppg
    pqpp: Pqpp

    name = "both"
    needs_targets = True
    needs_probabilities = True

    def settings(self) -> dict[str, Any]:
        return {**self.ppg.settings(), **self.pqpp.settings(), "name": self.name}

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """Return PPG's conversations about the image, then PQPP's.

        Raises:
            ValueError: The samples are about several images.
        """
        return [
            *self.ppg.training_conversations(samples, targets),
            *self.pqpp.training_conversations(samples, targets),
        ]

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        return [*self.ppg.preview_prompts(sample, targets), *self.pqpp.preview_prompts(sample, targets)]

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """Return PPG's answers without the points whose label is less probable than the other one.

        Raises:
            ModelError: The engine does not return yes/no probabilities.
        """
        answers = self.ppg.ask(engine, questions, max_new_tokens)
        points_xy = [[[(p.x, p.y) for p in prompt.points] for prompt in answer.prompts] for answer in answers]
        probabilities = self.pqpp.score_points(engine, questions, answers, points_xy)
        return [
            replace_points(answer, [_confirmed_points(*scored) for scored in zip(answer.prompts, scores, strict=True)])
            for answer, scores in zip(answers, probabilities, strict=True)
        ]


def _confirmed_points(prompt: SamPrompt, probabilities: Sequence[YesNo]) -> list[tuple[Point, float]]:
    """Return the prompt's points whose label is at least as probable as the other one, with that probability."""
    confirmed = []
    for point, (yes, no) in zip(prompt.points, probabilities, strict=True):
        label, other = (yes, no) if point.label == POSITIVE else (no, yes)
        if label >= other:
            confirmed.append((point, label))
    return confirmed
