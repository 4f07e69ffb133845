"""PPG, prompt-point generation: the model writes box and points in one answer (SAM4MLLM, arXiv 2409.10542, section 3).

Taught: per object, the box and the point group that SAM did best with. Asked: the same question, one phrase at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.geometry import Grid, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question, has_targets
from sam4mllm.methods.parsing import grouped, read_reply, reading_order
from sam4mllm.mllm.engine import Engine, Reply
from sam4mllm.prompts.conversation import Conversation, asking, teaching
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_prompts


@dataclass(frozen=True, slots=True)
class Ppg:
    """PPG with `positives` points on and `negatives` points off each object.

    Places are written by the convention `coordinates`; where there is none, plainly, on a `grid` of bins each way. With
    no points at all it teaches and asks boxes alone. `phrases` is how many phrases of an image are taught in one
    conversation; each is asked in one of its own.

    Raises:
        ValueError: a negative number of points; no bin, or no phrase.
    """

    positives: int
    negatives: int
    grid: int
    phrases: int
    coordinates: Coordinates | None = None

    name = "ppg"
    needs_targets = True
    needs_probabilities = False

    def __post_init__(self) -> None:
        if min(self.positives, self.negatives) < 0:
            raise ValueError(f"the numbers of points are 0 or more; got {self.positives} on, {self.negatives} off")
        if min(self.grid, self.phrases) < 1:
            raise ValueError(f"grid and phrases are 1 or more; got grid={self.grid}, phrases={self.phrases}")

    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "positives": self.positives,
            "negatives": self.negatives,
            "grid": self.grid,
            "phrases": self.phrases,
            "coordinates": "grid" if self.coordinates is None else self.coordinates.to_json(),
        }

    @property
    def grammar(self) -> AnswerGrammar:
        return AnswerGrammar(self.coordinates or Coordinates(Grid((self.grid, self.grid))))

    def question(self, phrase: str) -> str:
        return ask_prompts(phrase, self.positives, self.negatives)

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """One conversation for every `phrases` phrases of the image, and that once for each rank of kept prompts.

        Phrases that mean the same objects go to different conversations, because in one the second answer could be
        copied from the first. An object with fewer prompts than another repeats its last one. A phrase about objects
        that have boxes and no masks is taught as a question for boxes alone.

        Raises:
            ValueError: samples of several images.
        """
        conversations = []
        for group in grouped([sample for sample in samples if has_targets(sample, targets)], self.phrases):
            kept = [len(targets[item.id].prompts) for s in group if s.has_masks for item in s.objects]
            for rank in range(max(kept, default=1)):
                exchanges = [(self._taught_question(s), self._answer(s, targets, rank)) for s in group]
                conversations.append(teaching(group[0].image, exchanges))
        return conversations

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        boxes = [SamPrompt(item.box) for item in sample.objects if item.rle is None]
        return [self._cut(targets[item.id].prompts[0]) for item in sample.objects if item.id in targets] + boxes

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        conversations = [asking(question.image, self.question(question.phrase)) for question in questions]
        replies = engine.generate(conversations, max_new_tokens)
        return [
            self.read(reply, question.size_wh, max_new_tokens)
            for reply, question in zip(replies, questions, strict=True)
        ]

    def _taught_question(self, sample: Sample) -> str:
        return self.question(sample.phrase) if sample.has_masks else ask_boxes(sample.phrase)

    def _answer(self, sample: Sample, targets: Mapping[str, PromptTarget], rank: int) -> str:
        if not sample.has_masks:
            return self.grammar.write(reading_order([SamPrompt(item.box) for item in sample.objects]), sample.size_wh)
        chosen = [targets[item.id].prompts for item in sample.objects]
        prompts = [self._cut(prompts[min(rank, len(prompts) - 1)]) for prompts in chosen]
        return self.grammar.write(reading_order(prompts), sample.size_wh)

    def _cut(self, prompt: SamPrompt) -> SamPrompt:
        """The prompt with the points that the question asks for, the first ones of each kind."""
        return SamPrompt(prompt.box, prompt.positives[: self.positives] + prompt.negatives[: self.negatives])

    def read(self, reply: Reply, size_wh: tuple[int, int], max_new_tokens: int) -> Answer:
        """What a reply of at most `max_new_tokens` tokens says about an image of `size_wh` pixels."""
        return read_reply(self.grammar, reply, size_wh, max_new_tokens)
