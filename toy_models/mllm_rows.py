"""The images of the pre-training with their conversations as token rows, and targets for supervised attention.

A row is a conversation of one or several exchanges about an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from build_tower import CELLS, owners, pixels, targets
from mllm_pointing import exchanges
from mllm_text import NEXT_ANSWER, Exchange
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES

SCENE_SEED = 9_000_001
TOWER_ONLY_SEED = 9_000_004
IMAGE_TOKENS = CELLS * CELLS
# The targets of the supervised heads: the last word of a noun phrase attends to its other words (layer 0), then to the
# image tokens of the shapes that it refers to (1); an answer attends to those last words (2), then to the image tokens
# of its object (3). Two other heads do the same for points: the y of a point in a question attends to its x (0), then
# to the image token at the point (1); an answer attends to that y (2), and to the image token at the point (3).
PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER = 0, 1, 2, 3
SUPERVISED_LAYERS = (PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER)
REGION, POINT = 0, 1
ROW_LENGTH, MAX_ROWS = 128, 10
# The share of the pre-training's images in which shapes share boxes.
_SHARED_IMAGES = 0.8
# Half of the rows have positions further from the image, like later turns of a conversation.
MAX_DISTANCE = 240


@dataclass
class Row:
    """One conversation about an image: its tokens, the label of each (-100: none), and the weight of its loss.

    `attention_targets` holds (layer, REGION or POINT, position in the row, positions to attend to) for the supervised
    heads; positions to attend to are in the prefix or, counted on from its end, in the row. `locations` holds
    (position in the row, shape, whether it is a region of a question) of location tokens.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    attention_targets: list[tuple[int, int, int, list[int]]]
    distance: int = 0
    locations: list[tuple[int, int, bool]] = field(default_factory=list)


@dataclass
class Packed:
    """One image, its targets for the tower's auxiliary head, and its conversations (none for the tower alone)."""

    image: Tensor
    facts: dict[str, Tensor]
    rows: list[Row]


class Packer:
    """Packs the exchanges about a scene into token rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        opening = tokenizer.encode("<|im_start|>user\n")
        self.prefix = [*opening, *[tokenizer.convert_tokens_to_ids("<image>")] * IMAGE_TOKENS, *tokenizer.encode("\n")]
        self.first_image = len(opening)
        self.between = tokenizer.encode(NEXT_ANSWER)
        self.again = tokenizer.encode("\n<|im_start|>user\n")
        self.numbers = {tokenizer.encode(f"{n:03d}")[0] for n in range(1000)}
        self.point_end = tokenizer.convert_tokens_to_ids(")")
        self.yes_no = {tokenizer.encode(text)[-1] for text in ("yes", "no", "; yes", "; no")}

    def pack(
        self, scene: Scene, all_exchanges: list[Exchange], rng: np.random.Generator, most_rows: int = MAX_ROWS
    ) -> Packed:
        """Return the exchanges as at most `most_rows` rows; exchanges that do not fit are dropped."""
        owner, _ = owners(scene)
        cells = [np.flatnonzero(owner.ravel() == index).tolist() for index in range(len(scene.shapes))]
        rows: list[Row] = []
        answers_of_rows: list[set[tuple[int, ...]]] = []
        for exchange in all_exchanges:
            row = self._row(exchange, cells, scene.size_wh)
            # A later turn with the same answer could copy it from the text; such exchanges go to other rows.
            for earlier, answers in zip(rows, answers_of_rows, strict=True):
                fits = len(earlier.ids) + len(self.again) + len(row.ids) <= ROW_LENGTH
                if fits and (not exchange.answer_shapes or exchange.answer_shapes not in answers):
                    self._append(earlier, row)
                    answers.add(exchange.answer_shapes)
                    break
            else:
                if len(rows) == most_rows or len(row.ids) > ROW_LENGTH:
                    continue
                rows.append(row)
                answers_of_rows.append({exchange.answer_shapes})
        for row in rows:
            row.distance = int(rng.integers(MAX_DISTANCE)) if rng.random() < 0.5 else 0
        return Packed(pixels(scene), targets(scene), rows)

    def _append(self, earlier: Row, row: Row) -> None:
        shift = len(earlier.ids) + len(self.again)
        earlier.ids += [*self.again, *row.ids]
        earlier.labels += [*[-100] * len(self.again), *row.labels]
        earlier.weights += [*[0.0] * len(self.again), *row.weights]
        earlier.locations += [(position + shift, shape, is_region) for position, shape, is_region in row.locations]
        prefix = len(self.prefix)
        earlier.attention_targets += [
            (layer, heads, position + shift, [target + shift if target >= prefix else target for target in attend_to])
            for layer, heads, position, attend_to in row.attention_targets
        ]

    def _row(self, exchange: Exchange, cells: list[list[int]], size_wh: tuple[int, int]) -> Row:
        question = self.tokenizer(exchange.question, return_offsets_mapping=True, add_special_tokens=False)
        answer = [*self.tokenizer.encode(exchange.answer, add_special_tokens=False), self.tokenizer.eos_token_id]
        ids = [*question["input_ids"], *self.between, *answer]
        first_answer = len(ids) - len(answer)
        attention_targets: list[tuple[int, int, int, list[int]]] = []

        def attend_to_shapes(layer: int, position: int, shapes: tuple[int, ...]) -> None:
            # Words that match no shape attend to the first token, so that "nothing" has a position, too.
            tokens = [self.first_image + cell for shape in shapes for cell in cells[shape]]
            attention_targets.append((layer, REGION, position, tokens or [0]))

        # 1. The noun phrases of the question.
        words: list[int] = []
        for a, b, shapes in exchange.spans:
            span = [i for i, (x, y) in enumerate(question["offset_mapping"]) if x < b and y > a]
            last = span[-1]
            attention_targets.append((PHRASE_LAYER, REGION, last, [len(self.prefix) + i for i in span[:-1] or span]))
            attend_to_shapes(WORD_LAYER, last, shapes)
            words.append(len(self.prefix) + last)

        # 2. The answer, at its first token and before each number.
        before_number = [i for i in range(first_answer, len(ids)) if ids[i + 1 : i + 2] and ids[i + 1] in self.numbers]
        if words:
            attention_targets.append((LINK_LAYER, REGION, first_answer - 1, words))
            attend_to_shapes(ANSWER_LAYER, first_answer - 1, exchange.answer_shapes)
        if exchange.answer_shapes and exchange.kind != "count":
            per_shape = len(before_number) // len(exchange.answer_shapes)
            for n, i in enumerate(before_number):
                which = n // per_shape
                attend_to_shapes(ANSWER_LAYER, i, exchange.answer_shapes[which : which + 1])
                if words:
                    attention_targets.append((LINK_LAYER, REGION, i, words))
        attention_targets += self._points(exchange, ids, first_answer, before_number, size_wh)
        if exchange.kind == "on" and len(exchange.spans) == 1 and exchange.spans[0][2] == exchange.answer_shapes:
            attention_targets += self._match(exchange, ids, first_answer, words[0] - len(self.prefix))

        # 3. Labels and weights. "No object" and "yes" have few tokens, a box has ten: their loss has a higher weight.
        weight = {"nothing": 1.5, "on": 3.0, "count": 2.0}.get(exchange.kind, 1.0)
        on = [first_answer <= i + 1 < len(ids) for i in range(len(ids))]
        labels = [token if supervised else -100 for token, supervised in zip([*ids[1:], -100], on, strict=True)]
        return Row(ids, labels, [weight * supervised for supervised in on], attention_targets)

    def _points(
        self, exchange: Exchange, ids: list[int], first_answer: int, before_number: list[int], size_wh: tuple[int, int]
    ) -> list[tuple[int, int, int, list[int]]]:
        """Return the attention targets of the heads for points."""

        def token_at(point: tuple[float, float]) -> list[int]:
            column, row = (
                min(int(value / size * CELLS), CELLS - 1) for value, size in zip(point, size_wh, strict=True)
            )
            return [self.first_image + row * CELLS + column]

        found = []
        at_y, at_answers = self._question_points(exchange, ids, first_answer)
        for point, y, positions in zip(exchange.question_points, at_y, at_answers, strict=True):
            found.append((PHRASE_LAYER, POINT, y, [len(self.prefix) + y - 2]))
            found.append((WORD_LAYER, POINT, y, token_at(point)))
            found += [(LINK_LAYER, POINT, i, [len(self.prefix) + y]) for i in positions]
            if exchange.kind == "at":
                found += [(ANSWER_LAYER, POINT, i, token_at(point)) for i in positions]
        if exchange.answer_points:
            # The numbers of a shape are those of its box, if the answer has boxes, and then those of its points.
            numbers_per_shape = len(before_number) // len(exchange.answer_shapes)
            points_per_shape = len(exchange.answer_points) // len(exchange.answer_shapes)
            for n, point in enumerate(exchange.answer_points):
                shape, of_shape = divmod(n, points_per_shape)
                first = (shape + 1) * numbers_per_shape - 2 * (points_per_shape - of_shape)
                found += [(ANSWER_LAYER, POINT, i, token_at(point)) for i in before_number[first : first + 2]]
        return found

    def _question_points(
        self, exchange: Exchange, ids: list[int], first_answer: int
    ) -> tuple[list[int], list[list[int]]]:
        """Return where the y of each point of the question is, and the positions that predict its part of the answer.

        The answer is a list of yes and no, one for each point, or is about one point as a whole.
        """
        ends = [i for i in range(first_answer) if ids[i] == self.point_end and ids[i - 1] in self.numbers]
        at_y = [i - 1 for i in ends[len(ends) - len(exchange.question_points) :]]
        if exchange.kind == "on":
            return at_y, [[i] for i in range(first_answer - 1, len(ids) - 1) if ids[i + 1] in self.yes_no]
        return at_y, [list(range(first_answer - 1, len(ids) - 2)) for _ in at_y]

    def _match(
        self, exchange: Exchange, ids: list[int], first_answer: int, word: int
    ) -> list[tuple[int, int, int, list[int]]]:
        """Return attention targets for comparing points with a noun phrase: the later one attends to the earlier one.

        If a point is not on the shape it attends to the first token. Its part of the answer attends to the later one.
        A phrase that follows its point has one point only.
        """
        prefix = len(self.prefix)
        found: list[tuple[int, int, int, list[int]]] = []
        at_y, at_answers = self._question_points(exchange, ids, first_answer)
        for y, positions, text in zip(at_y, at_answers, exchange.answer.split("; "), strict=True):
            earlier, later = sorted((y, word))
            found.append((LINK_LAYER, POINT, later, [prefix + earlier if text == "yes" else 0]))
            found += [(ANSWER_LAYER, POINT, i, [prefix + later]) for i in positions]
        return found


def make_packed(packer: Packer, index: int) -> Packed:
    """Return one image of the pre-training with its conversations."""
    rng = np.random.default_rng([SCENE_SEED, 1, index])
    scene = make_scene(SCENE_SEED, index, shared_boxes=SHARED_BOXES if rng.random() < _SHARED_IMAGES else 0.0)
    about_scene = exchanges(scene, rng)
    return packer.pack(scene, [about_scene[i] for i in rng.permutation(len(about_scene))], rng)


def make_tower_only(index: int) -> Packed:
    """Return an image without conversations."""
    scene = make_scene(TOWER_ONLY_SEED, index, shared_boxes=SHARED_BOXES)
    return Packed(pixels(scene), targets(scene), [])
