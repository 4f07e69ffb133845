"""PQPP, proactive query of prompt-points: the model says where, then judges points one by one (arXiv 2409.10542).

Taught, in one conversation: round one, the phrase, answered by the boxes; round two, for each box, points in it, each
answered by yes (it is on the object) or no. The points are spread evenly at random (Poisson disks), in a box whose
sides are a little off, so that the model meets boxes like its own; about N(10, 4) a question, or one.

Asked: round one as it is taught, then points on a fixed grid in each box it names. What the model thinks of each is
read from its own distribution: sure ones prompt SAM beside the box, unsure ones are dropped. Where no point is left,
the box stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question
from sam4mllm.methods.parsing import grouped, read_reply, reading_order, require_scoring_engine, with_points
from sam4mllm.mllm.engine import Engine
from sam4mllm.prompts.conversation import Conversation, Turn, asking, teaching
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_points
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.targets.sampling import jittered_boxes, poisson_disk, seeded

COUNT, COUNT_STD, MOST = 10, 4, 20
"""Points of a question in the form "list": about N(10, 4) of them, 1 to 20 (the paper's released settings)."""

SINGLES = 4
"""Questions about one object in the form "single"; more would fill the conversation with one object."""

RADIUS, DRAWN = 0.1, 100
"""The points of a box lie this far apart at least, as a share of its sides; so many are drawn at most (ibid.)."""


@dataclass(frozen=True, slots=True)
class Pqpp:
    """PQPP with points taught and asked in the `form` "list", several a question, or "single", one a question.

    `box_jitter` is how far the sides of a taught box are off, as a share of the side. The points asked lie on a "grid"
    of 5 x 5 or in a "pattern" of 15 (`asked`). One is positive where P(yes) is above `yes_above`, negative where P(no)
    is above `no_above`. Places are written by `coordinates`, or plainly on a `grid` of bins; `phrases` of an image are
    taught in one conversation.

    Raises:
        ValueError: an unknown form or way of asking; a jitter or a probability that cannot be; no bin, or no phrase.
    """

    form: str
    asked: str
    box_jitter: float
    yes_above: float
    no_above: float
    grid: int
    phrases: int
    coordinates: Coordinates | None = None

    name = "pqpp"
    needs_targets = False
    needs_probabilities = True

    def __post_init__(self) -> None:
        if self.form not in ("list", "single") or self.asked not in ("grid", "pattern"):
            raise ValueError(f"form is list or single, asked grid or pattern; got {self.form!r}, {self.asked!r}")
        if not 0 <= self.box_jitter < 0.5:
            raise ValueError(f"box_jitter is from 0 to below 0.5, so that corners keep order; got {self.box_jitter}")
        if not (0 <= self.yes_above <= 1 and 0 <= self.no_above <= 1):
            raise ValueError(f"yes_above and no_above are from 0 to 1; got {self.yes_above}, {self.no_above}")
        if min(self.grid, self.phrases) < 1:
            raise ValueError(f"grid and phrases are 1 or more; got grid={self.grid}, phrases={self.phrases}")

    def settings(self) -> dict[str, Any]:
        coordinates = "grid" if self.coordinates is None else self.coordinates.to_json()
        return {"name": self.name, **asdict(self), "coordinates": coordinates}

    @property
    def grammar(self) -> AnswerGrammar:
        return AnswerGrammar(self.coordinates or Coordinates(Grid((self.grid, self.grid))))

    # Teach.

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """One conversation for every `phrases` phrases of the image, both rounds of each phrase in turn.

        An object whose stored target has no point, because the box alone does better, has no second round, and neither
        has one without a mask.

        Raises:
            ValueError: samples of several images.
        """
        return [
            teaching(group[0].image, [exchange for sample in group for exchange in self._rounds(sample, targets)])
            for group in grouped(samples, self.phrases)
        ]

    def _rounds(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> Iterator[tuple[str, str]]:
        """The questions and answers about one phrase."""
        named = reading_order([SamPrompt(item.box) for item in sample.objects])
        yield ask_boxes(sample.phrase), self.grammar.write(named, sample.size_wh)
        for item in sorted(sample.objects, key=lambda item: (item.box.x1, item.box.y1)):
            if (prompt := self._taught(sample, item, targets)).points:
                places, truth = [(p.x, p.y) for p in prompt.points], iter(prompt.points)
                for question in self._questions(box_of(prompt), places, sample.size_wh):
                    answers = [next(truth).label == POSITIVE for _ in range(question.count)]
                    yield question.text, write_answers(answers)

    def _taught(self, sample: Sample, item: MaskObject, targets: Mapping[str, PromptTarget]) -> SamPrompt:
        """The points that this phrase's second round is about, with the truth, in the box that it names."""
        boxed = item.id in targets and not targets[item.id].prompts[0].points
        if item.rle is None or boxed:
            return SamPrompt(item.box)
        rng = seeded(0, "pqpp", f"{sample.id}\n{item.id}")
        (corners,) = jittered_boxes(item.box, sample.size_wh, rng, share=self.box_jitter, count=1).tolist()
        box, mask = Box(*corners), item.mask()
        drawn = min(max(round(rng.normal(COUNT, COUNT_STD)), 1), MOST)
        count = drawn if self.form == "list" else SINGLES
        spots = rng.permutation(poisson_disk(rng, RADIUS, DRAWN))[:count].tolist()
        places = self._places(box, spots, sample.size_wh)
        if (ignored := sample.ignored()) is not None:
            places = [(x, y) for x, y in places if not ignored[int(y), int(x)]]
        # The truth at the place that is written, which is where the model will look.
        return SamPrompt(box, tuple(Point(x, y, POSITIVE if mask[int(y), int(x)] else NEGATIVE) for x, y in places))

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        return [self._taught(sample, item, targets) for item in sample.objects]

    # Ask.

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """The boxes that the model names, with those points of a grid in each that it is sure about.

        Raises:
            ModelError: an engine that does not let its model's distribution be read.
        """
        replies = engine.generate([asking(q.image, ask_boxes(q.phrase)) for q in questions], max_new_tokens)
        answers = [
            read_reply(self.grammar, reply, question.size_wh, max_new_tokens)
            for reply, question in zip(replies, questions, strict=True)
        ]
        spots = GRID if self.asked == "grid" else PATTERN
        places_xy = [
            [self._places(box_of(prompt), spots, question.size_wh) for prompt in answer.prompts]
            for answer, question in zip(answers, questions, strict=True)
        ]
        weighed = self.score_answers(engine, questions, answers, places_xy)
        return [
            with_points(answer, [self._sure(*each) for each in zip(places, weights, strict=True)])
            for answer, places, weights in zip(answers, places_xy, weighed, strict=True)
        ]

    def score_answers(
        self,
        engine: Engine,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        places_xy: Sequence[Sequence[Sequence[tuple[float, float]]]],
    ) -> list[list[list[YesNo]]]:
        """Round two: for each answer, each of its boxes and each place in it, what yes and no weigh.

        Before it stands round one as it is taught, in this method's words, so any method's boxes can be asked about.

        Raises:
            ModelError: an engine that does not let its model's distribution be read.
        """
        inquiries = []
        for question, answer, by_box in zip(questions, answers, places_xy, strict=True):
            boxes = [box_of(prompt) for prompt in answer.prompts]
            said = self.grammar.write([SamPrompt(box) for box in boxes], question.size_wh)
            turns = (Turn("user", ask_boxes(question.phrase)), Turn("assistant", said))
            asked = [
                each
                for box, places in zip(boxes, by_box, strict=True)
                for each in self._questions(box, places, question.size_wh)
            ]
            inquiries.append(YesNoQuery(Conversation(question.image, turns), tuple(asked)))
        found = []
        for weights, by_box in zip(require_scoring_engine(engine).score_answers(inquiries), places_xy, strict=True):
            flat = iter([weight for each in weights for weight in each])
            found.append([[next(flat) for _ in places] for places in by_box])
        return found

    def _places(
        self, box: Box, spots: Iterable[tuple[float, float]], size_wh: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """The places of spots in a box, given as shares of its sides, as the model will read them."""
        return [self.grammar.nearest(box.x1 + x * box.width, box.y1 + y * box.height, size_wh) for x, y in spots]

    def _questions(
        self, box: Box, places_xy: Sequence[tuple[float, float]], size_wh: tuple[int, int]
    ) -> list[YesNoQuestion]:
        """The questions about the places of a box: one for each, or about equal lists as long as those taught."""
        if not places_xy:
            return []
        count = len(places_xy)
        lists = count if self.form == "single" else -(-count // MOST)
        edges = [count * number // lists for number in range(lists + 1)]
        parts = [places_xy[start:end] for start, end in pairwise(edges)]
        return [YesNoQuestion(self._question(box, part, size_wh), len(part)) for part in parts]

    def _question(self, box: Box, places_xy: Sequence[tuple[float, float]], size_wh: tuple[int, int]) -> str:
        named = self.grammar.write([SamPrompt(box)], size_wh)
        return ask_points(named, [self.grammar.write_point(x, y, size_wh) for x, y in places_xy])

    def _sure(self, places_xy: Sequence[tuple[float, float]], weights: Sequence[YesNo]) -> list[tuple[Point, float]]:
        """The places that the model is sure about, as points, each with how likely it finds its label."""
        labels = [self._label(weight) for weight in weights]
        return [
            (Point(x, y, label), weight.yes if label == POSITIVE else weight.no)
            for (x, y), label, weight in zip(places_xy, labels, weights, strict=True)
            if label is not None
        ]

    def _label(self, weight: YesNo) -> int | None:
        """POSITIVE, NEGATIVE, or None for a point that the model is unsure about."""
        if weight.yes > self.yes_above and weight.yes >= weight.no:
            return POSITIVE
        return NEGATIVE if weight.no > self.no_above else None


def box_of(prompt: SamPrompt) -> Box:
    """The box of a prompt that was read from an answer; the grammar names every object by one."""
    if prompt.box is None:
        raise ValueError(f"points are asked about in a box; got a prompt with points only: {prompt.points}")
    return prompt.box


GRID = sorted(
    (((column + 0.5) / 5, (row + 0.5) / 5) for row in range(5) for column in range(5)),
    key=lambda place: (round(5 * sum(place)) % 2, place),
)
"""The centres of 5 x 5 fields of a box, as shares of its sides; the fields of one colour of a chessboard come first, so
that two lists of them cover the box each."""

PATTERN = [((column + (0.25, 0.75)[row % 2]) / 3, (row + 0.5) / 5) for row in range(5) for column in range(3)]
"""15 places of a box as shares of its sides: five rows of three, every other row moved by half a field."""
