"""PPG, prompt-point generation (SAM4MLLM, arXiv 2409.10542, section 3): box and points in one answer.

The training target of each object is its box with the point group whose SAM mask has the highest IoU with the annotated
mask. At inference the same question is asked, one phrase at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.geometry import Grid, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question, has_targets
from sam4mllm.methods.parsing import (
    check_packing,
    group_samples,
    packed_conversation,
    packing_setting,
    parse_reply,
    reading_order,
    require_box,
)
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.answer_form import AnswerForm
from sam4mllm.prompts.conversation import Conversation, Exchange, LocatedText, Location, inference_conversation
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_prompts
from sam4mllm.recipe.schema import Packing


@dataclass(frozen=True, slots=True)
class Ppg:
    """PPG with `positives` points inside each object and `negatives` points outside it.

    With 0 and 0 the training targets and the answers are boxes alone. Coordinates are written in the convention
    `coordinates`, or, where that is None, plainly on a `grid` of that many bins in both directions. `phrases` is the
    maximum number of phrases in one training conversation; at inference each phrase has a conversation of its own.
    `packing` is "turns" or "isolated": whether the later phrases of a training conversation see the earlier ones. With
    a `box_loss` above 0, training conversations also have the boxes as locations of the text that opens them.

    Raises:
        ValueError: A negative number of points or `box_loss`, `grid` or `phrases` below 1, or an unknown `packing`.
    """

    positives: int
    negatives: int
    grid: int
    phrases: int
    coordinates: Coordinates | None = None
    packing: Packing = "turns"
    box_loss: float = 0.0

    name = "ppg"
    needs_targets = True
    needs_probabilities = False
    needs_locations = False
    needs_prompt_tokens = False
    tokens_alone = False

    def __post_init__(self) -> None:
        if min(self.positives, self.negatives) < 0:
            raise ValueError(f"positives and negatives must be 0 or more; got {self.positives} and {self.negatives}")
        if min(self.grid, self.phrases) < 1:
            raise ValueError(f"grid and phrases must be 1 or more; got grid={self.grid}, phrases={self.phrases}")
        if self.box_loss < 0:
            raise ValueError(f"box_loss must be 0 or more; got {self.box_loss}")
        check_packing(self.packing)

    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "positives": self.positives,
            "negatives": self.negatives,
            "grid": self.grid,
            "phrases": self.phrases,
            "coordinates": "grid" if self.coordinates is None else self.coordinates.to_json(),
            **packing_setting(self.packing, self.phrases),
            # For training only; runs without it have the settings of earlier versions.
            **({"box_loss": self.box_loss} if self.box_loss else {}),
        }

    @property
    def grammar(self) -> AnswerGrammar:
        """The grammar of the answers, in this method's coordinate convention."""
        return AnswerGrammar(self.coordinates or Coordinates(Grid((self.grid, self.grid))))

    @property
    def answer_form(self) -> AnswerForm:
        return self.grammar.form(self.positives, self.negatives)

    def question(self, phrase: str) -> str:
        """Return the text of the question about `phrase`."""
        return ask_prompts(phrase, self.positives, self.negatives)

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """Return a conversation for every `phrases` phrases of the image, once for each rank of the kept prompts.

        Phrases about the same objects go to different conversations, unless the phrases are isolated; in turns the
        second answer could be copied from the first. An object with fewer kept prompts than another repeats its last
        one. Objects that are annotated with boxes only are asked for by the question for boxes.

        Raises:
            ValueError: The samples are about several images.

        >>> from pathlib import Path
        >>> from types import SimpleNamespace
        >>> import numpy as np
        >>> from sam4mllm.data.masks import encode
        >>> from sam4mllm.data.sample import MaskObject, Sample
        >>> from sam4mllm.geometry import Box, Point, SamPrompt
        >>> mask = np.zeros((50, 100), dtype=bool)
        >>> mask[10:30, 10:30] = True
        >>> cup = MaskObject("cup", encode(mask), Box(10, 10, 30, 30))
        >>> sample = Sample("mine/1", Path("street.jpg"), (100, 50), "the left cup", (cup,))
        >>> points = (Point(15, 20, 1), Point(17, 20, 1), Point(35, 20, 0))
        >>> targets = {"cup": SimpleNamespace(prompts=[SamPrompt(cup.box, points)])}
        >>> ppg = Ppg(positives=2, negatives=1, grid=1000, phrases=5)
        >>> (conversation,) = ppg.training_conversations([sample], targets)
        >>> for turn in conversation.turns:
        ...     print(f"{turn.role}: {turn.text}")
        user: Where is "the left cup"? Box each object, with 2 points on it and 1 off it.
        assistant: [100,200,300,600] +(150,400)(170,400) -(350,400)
        """
        conversations = []
        usable = [sample for sample in samples if has_targets(sample, targets)]
        for group in group_samples(usable, self.phrases, self.packing):
            kept = [len(targets[item.id].prompts) for s in group if s.has_masks for item in s.objects]
            for rank in range(max(kept, default=1)):
                exchanges = [[self._exchange(sample, targets, rank)] for sample in group]
                conversations.append(packed_conversation(group[0].image, exchanges, self.packing))
        return conversations

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        boxes = [SamPrompt(item.box) for item in sample.objects if item.rle is None]
        best = [targets[item.id].prompts[0] for item in sample.objects if item.id in targets]
        return [self._limit_points(prompt) for prompt in best] + boxes

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        conversations = [
            inference_conversation(question.image, self.question(question.phrase)) for question in questions
        ]
        replies = engine.generate(conversations, max_new_tokens)
        return [
            parse_reply(self.grammar, reply, question.size_wh, max_new_tokens)
            for reply, question in zip(replies, questions, strict=True)
        ]

    def _exchange(self, sample: Sample, targets: Mapping[str, PromptTarget], rank: int) -> Exchange:
        """Return question and answer about one phrase, with the prompts of `rank` (0 is the best)."""
        if not sample.has_masks:
            question, prompts = ask_boxes(sample.phrase), [SamPrompt(item.box) for item in sample.objects]
        else:
            kept = [targets[item.id].prompts for item in sample.objects]
            question = self.question(sample.phrase)
            prompts = [self._limit_points(ranked[min(rank, len(ranked) - 1)]) for ranked in kept]
        prompts = reading_order(prompts)
        answer = self.grammar.write(prompts, sample.size_wh)
        return question, self._located(answer, prompts, sample.size_wh) if self.box_loss else answer

    def _located(self, answer: str, prompts: Sequence[SamPrompt], size_wh: tuple[int, int]) -> LocatedText:
        """Return an answer with the prompts' boxes as locations, each where its text opens the box."""
        opening = self.grammar.coordinates.box[0].strip()
        locations = [
            Location(require_box(prompt).to_shares(size_wh), answer.index(opening, written.start()))
            for prompt, written in zip(prompts, self.grammar.box_pattern.finditer(answer), strict=True)
        ]
        return LocatedText(answer, tuple(locations))

    def _limit_points(self, prompt: SamPrompt) -> SamPrompt:
        """Return the prompt with the first points of each kind, as many as the question asks for."""
        return SamPrompt(prompt.box, prompt.positives[: self.positives] + prompt.negatives[: self.negatives])
