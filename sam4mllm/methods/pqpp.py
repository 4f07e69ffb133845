"""PQPP, proactive query of prompt-points (SAM4MLLM, arXiv 2409.10542, section 3): boxes, then yes or no per point.

Training: one conversation per group of phrases with two rounds per phrase. Round one is the question for the boxes. In
round two the model answers yes (on the object) or no to points in each box. The points are a Poisson disk sample of the
box: N(10, 4) of them in one question, or one in each question. The box's sides are jittered, because predicted boxes
are inexact.

Inference: round one is asked, then a fixed pattern of points in each predicted box is scored. Points whose yes or no
probability is above a threshold become point prompts for SAM, the others are dropped. If all are dropped, SAM gets the
box alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question
from sam4mllm.methods.parsing import (
    check_packing,
    group_samples,
    objects_in_reading_order,
    packed_conversation,
    packing_setting,
    parse_reply,
    reading_order,
    replace_points,
    require_box,
    require_scoring_engine,
)
from sam4mllm.mllm.engine import Engine, open_session
from sam4mllm.prompts.answer_form import AnswerForm
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_points
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.recipe.schema import Packing
from sam4mllm.targets.sampling import jittered_boxes, poisson_disk, seeded_rng

POINTS_MEAN, POINTS_STD, MAX_POINTS = 10, 4, 20
"""Points in one question of the form "list": N(10, 4), limited to 1 to 20 (SAM4MLLM's released settings)."""

SINGLE_QUESTIONS = 4
"""Questions about one object in the form "single"; more would fill the conversation with one object."""

POISSON_RADIUS, POISSON_POINTS = 0.1, 100
"""Least distance between points as a share of the box's sides, and the most points sampled (released settings)."""

GRID_XY = sorted(
    (((column + 0.5) / 5, (row + 0.5) / 5) for row in range(5) for column in range(5)),
    key=lambda xy: (round(5 * sum(xy)) % 2, xy),
)
"""Centers of 5 x 5 cells of a box, as shares of its sides. The cells of one color of a chessboard come first, so that
each of two lists covers the box."""

PATTERN_XY = [((column + (0.25, 0.75)[row % 2]) / 3, (row + 0.5) / 5) for row in range(5) for column in range(3)]
"""15 points of a box as shares of its sides: five rows of three, every other row shifted by half a cell."""


@dataclass(frozen=True, slots=True)
class Pqpp:
    """PQPP with several points in one question (`form` "list") or one (`form` "single"), in training and inference.

    At inference the points of a "grid" of 5 x 5 or of a "pattern" of 15 are asked (`asked`). A point is positive if
    P(yes) is above `yes_above`, negative if P(no) is above `no_above`; SAM4MLLM's released settings are 0.75 and 0.9.
    `box_jitter` is the largest offset of a side of a training box, as a share of the side. Coordinates are written in
    the convention `coordinates`, or, where that is None, plainly on a `grid` of that many bins in both directions.
    `phrases` is the maximum number of phrases in one training conversation. `packing` is "turns" or "isolated": whether
    its later phrases see the earlier ones; the second round of a phrase always sees the first.

    Raises:
        ValueError: An unknown `form`, `asked` or `packing`, a jitter or a threshold out of range, `grid` or `phrases`
            below 1.
    """

    form: str
    asked: str
    box_jitter: float
    yes_above: float
    no_above: float
    grid: int
    phrases: int
    coordinates: Coordinates | None = None
    packing: Packing = "turns"

    name = "pqpp"
    needs_targets = False
    needs_probabilities = True
    needs_locations = False
    needs_prompt_tokens = False
    tokens_alone = False

    def __post_init__(self) -> None:
        if self.form not in ("list", "single") or self.asked not in ("grid", "pattern"):
            raise ValueError(
                f"form must be list or single, and asked grid or pattern; got {self.form!r}, {self.asked!r}"
            )
        if not 0 <= self.box_jitter < 0.5:
            raise ValueError(
                f"box_jitter must be from 0 to below 0.5, so that corners keep their order; got {self.box_jitter}"
            )
        if not (0 <= self.yes_above <= 1 and 0 <= self.no_above <= 1):
            raise ValueError(f"yes_above and no_above must be from 0 to 1; got {self.yes_above}, {self.no_above}")
        if min(self.grid, self.phrases) < 1:
            raise ValueError(f"grid and phrases must be 1 or more; got grid={self.grid}, phrases={self.phrases}")
        check_packing(self.packing)

    def settings(self) -> dict[str, Any]:
        coordinates = "grid" if self.coordinates is None else self.coordinates.to_json()
        fields = {key: value for key, value in asdict(self).items() if key != "packing"}
        return {"name": self.name, **fields, "coordinates": coordinates, **packing_setting(self.packing, self.phrases)}

    @property
    def grammar(self) -> AnswerGrammar:
        """The grammar of the answers, in this method's coordinate convention."""
        return AnswerGrammar(self.coordinates or Coordinates(Grid((self.grid, self.grid))))

    @property
    def answer_form(self) -> AnswerForm:
        return self.grammar.form(0, 0)

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """Return a conversation for every `phrases` phrases of the image, with both rounds of each phrase.

        An object has no second round if it has no mask. `targets` is not used.

        Raises:
            ValueError: The samples are about several images.
        """
        return [
            packed_conversation(group[0].image, [list(self._exchanges(sample)) for sample in group], self.packing)
            for group in group_samples(samples, self.phrases, self.packing)
        ]

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        return [self._training_prompt(sample, item) for item in sample.objects]

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """Return the predicted boxes, each with the points whose probability is above its threshold.

        Raises:
            ModelError: The engine does not return yes/no probabilities.
        """
        # The image is computed in round one, and not again in round two.
        with open_session(engine) as session:
            # 1. Round one: the model generates the boxes.
            replies = session.generate(
                [inference_conversation(q.image, ask_boxes(q.phrase)) for q in questions], max_new_tokens
            )
            answers = [
                parse_reply(self.grammar, reply, question.size_wh, max_new_tokens)
                for reply, question in zip(replies, questions, strict=True)
            ]
            # 2. The pattern of points is scaled into each box.
            pattern_xy = GRID_XY if self.asked == "grid" else PATTERN_XY
            points_xy = [
                [self._points_in_box(require_box(prompt), pattern_xy, question.size_wh) for prompt in answer.prompts]
                for answer, question in zip(answers, questions, strict=True)
            ]
            # 3. Round two: the probabilities of yes and no decide which points are kept, with which label.
            probabilities = self.score_points(session, questions, answers, points_xy)
        return [
            replace_points(answer, [self._confident_points(*scored) for scored in zip(by_box, scores, strict=True)])
            for answer, by_box, scores in zip(answers, points_xy, probabilities, strict=True)
        ]

    def score_points(
        self,
        engine: Engine,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        points_xy: Sequence[Sequence[Sequence[tuple[float, float]]]],
    ) -> list[list[list[YesNo]]]:
        """Return the yes/no probabilities of each point of each box of each answer; `points_xy` is in pixels.

        Round one is written anew in the form that this method is trained on.

        Raises:
            ModelError: The engine does not return yes/no probabilities.
        """
        # 1. One query per answer: the history is round one, the questions are about all its boxes.
        queries = []
        for question, answer, by_box in zip(questions, answers, points_xy, strict=True):
            boxes = [require_box(prompt) for prompt in answer.prompts]
            boxes_text = self.grammar.write([SamPrompt(box) for box in boxes], question.size_wh)
            turns = (Turn("user", ask_boxes(question.phrase)), Turn("assistant", boxes_text))
            point_questions = [
                point_question
                for box, box_points_xy in zip(boxes, by_box, strict=True)
                for point_question in self._point_questions(box, box_points_xy, question.size_wh)
            ]
            queries.append(YesNoQuery(Conversation(question.image, turns), tuple(point_questions)))
        # 2. The probabilities come by question; they are grouped by box again.
        scored = require_scoring_engine(engine).score_answers(queries)
        by_answer = []
        for by_question, by_box in zip(scored, points_xy, strict=True):
            flat = (probability for answered in by_question for probability in answered)
            by_answer.append([list(islice(flat, len(box_points_xy))) for box_points_xy in by_box])
        return by_answer

    def _exchanges(self, sample: Sample) -> Iterator[tuple[str, str]]:
        """Yield the questions and answers about one phrase."""
        # 1. Round one: all boxes.
        boxes = reading_order([SamPrompt(item.box) for item in sample.objects])
        yield ask_boxes(sample.phrase), self.grammar.write(boxes, sample.size_wh)
        # 2. Round two: points in each box, in the same order.
        for item in objects_in_reading_order(sample.objects):
            prompt = self._training_prompt(sample, item)
            points_xy, truth = [(point.x, point.y) for point in prompt.points], iter(prompt.points)
            for question in self._point_questions(require_box(prompt), points_xy, sample.size_wh):
                answers = [point.label == POSITIVE for point in islice(truth, question.count)]
                yield question.text, write_answers(answers)

    def _training_prompt(self, sample: Sample, item: MaskObject) -> SamPrompt:
        """Return the box of an object's second round with its labeled points; without points if it has no such round.

        The random numbers depend on the ids of sample and object alone, so a restart gives the same points.
        """
        if item.rle is None:
            return SamPrompt(item.box)
        rng = seeded_rng(0, "pqpp", f"{sample.id}\n{item.id}")
        # 1. A jittered box.
        (corners,) = jittered_boxes(item.box, sample.size_wh, rng, share=self.box_jitter, count=1).tolist()
        box, mask = Box(*corners), item.mask()
        # 2. Evenly spread points in it, without those on ignored pixels.
        sampled = min(max(round(rng.normal(POINTS_MEAN, POINTS_STD)), 1), MAX_POINTS)
        count = sampled if self.form == "list" else SINGLE_QUESTIONS
        shares_xy = rng.permutation(poisson_disk(rng, POISSON_RADIUS, POISSON_POINTS))[:count].tolist()
        points_xy = self._points_in_box(box, shares_xy, sample.size_wh)
        if (ignored := sample.ignored()) is not None:
            points_xy = [(x, y) for x, y in points_xy if not ignored[int(y), int(x)]]
        # 3. Labels from the mask, at the coordinates that are written in the question.
        return SamPrompt(box, tuple(Point(x, y, POSITIVE if mask[int(y), int(x)] else NEGATIVE) for x, y in points_xy))

    def _points_in_box(
        self, box: Box, shares_xy: Iterable[tuple[float, float]], size_wh: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """Return points in pixels from shares of the box's sides, rounded to coordinates that the text can express."""
        return [self.grammar.nearest(box.x1 + x * box.width, box.y1 + y * box.height, size_wh) for x, y in shares_xy]

    def _point_questions(
        self, box: Box, points_xy: Sequence[tuple[float, float]], size_wh: tuple[int, int]
    ) -> list[YesNoQuestion]:
        """Return the questions about points of a box: one per point, or one per list of at most 20 of them."""
        if not points_xy:
            return []
        # 1. The points are cut into as few lists as the form allows.
        count = len(points_xy)
        lists = count if self.form == "single" else -(-count // MAX_POINTS)
        edges = [count * index // lists for index in range(lists + 1)]
        # 2. Each list becomes one question.
        box_text = self.grammar.write([SamPrompt(box)], size_wh)
        texts = [self.grammar.write_point(x, y, size_wh) for x, y in points_xy]
        return [YesNoQuestion(ask_points(box_text, texts[start:end]), end - start) for start, end in pairwise(edges)]

    def _confident_points(
        self, points_xy: Sequence[tuple[float, float]], probabilities: Sequence[YesNo]
    ) -> list[tuple[Point, float]]:
        """Return the points above a threshold as prompts, each with the probability of its label."""
        labels = [self._label(probability) for probability in probabilities]
        return [
            (Point(x, y, label), probability.yes if label == POSITIVE else probability.no)
            for (x, y), label, probability in zip(points_xy, labels, probabilities, strict=True)
            if label is not None
        ]

    def _label(self, probability: YesNo) -> int | None:
        """Return POSITIVE, NEGATIVE, or None if neither probability is above its threshold."""
        if probability.yes > self.yes_above and probability.yes >= probability.no:
            return POSITIVE
        return NEGATIVE if probability.no > self.no_above else None
