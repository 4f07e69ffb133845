"""Both methods in one model: PPG writes box and points in one answer, PQPP's question checks the points.

Taught: the conversations of the two, side by side. Asked: PPG's question; then, about the points of its answer, PQPP's.
A point that the model itself denies is dropped: a positive one where no is likelier than yes, a negative one where yes
is likelier than no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.geometry import POSITIVE, Point, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question
from sam4mllm.methods.parsing import with_points
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import Pqpp
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo


@dataclass(frozen=True, slots=True)
class PpgWithVerification:
    """PPG, checked by PQPP; the two write places alike."""

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
        """PPG's conversations about the image, then PQPP's; of samples that PPG can teach, in a training.

        Raises:
            ValueError: samples of several images.
        """
        # Where PPG teaches no points, none says that the box alone does better.
        judged = targets if self.ppg.positives + self.ppg.negatives else {}
        return [*self.ppg.training_conversations(samples, targets), *self.pqpp.training_conversations(samples, judged)]

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        return [*self.ppg.preview_prompts(sample, targets), *self.pqpp.preview_prompts(sample, targets)]

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """PPG's answers without the points that the model denies.

        Raises:
            ModelError: an engine that does not let its model's distribution be read.
        """
        answers = self.ppg.ask(engine, questions, max_new_tokens)
        places_xy = [[[(p.x, p.y) for p in prompt.points] for prompt in answer.prompts] for answer in answers]
        weighed = self.pqpp.score_answers(engine, questions, answers, places_xy)
        return [
            with_points(answer, [_affirmed_of(*each) for each in zip(answer.prompts, weights, strict=True)])
            for answer, weights in zip(answers, weighed, strict=True)
        ]


def _affirmed_of(prompt: SamPrompt, weights: Sequence[YesNo]) -> list[tuple[Point, float]]:
    """The points that the model does not deny, each with how likely it finds its label."""
    weighed = zip(prompt.points, weights, strict=True)
    return [(point, likely) for point, weight in weighed if (likely := _affirmed(point, weight)) is not None]


def _affirmed(point: Point, weight: YesNo) -> float | None:
    """How likely the model finds the point's label; None where it finds the other one likelier."""
    given, other = (weight.yes, weight.no) if point.label == POSITIVE else (weight.no, weight.yes)
    return given if given >= other else None
