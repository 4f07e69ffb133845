"""Exchanges about points for the embedded MLLM's pre-training, in plain words.

    Point to the red ring.                              (412,077)
    Point to 2 places on the red ring.                  (388,102)(455,171)
    Point to 2 places near the red ring, not on it.     (366,050)(430,140)
    Mark the red ring by its box and by 2 places, and 1 near it.
                                                        [351,009,480,201] at (388,102)(455,171), near (366,050)
    Mark the red ring by its box and by 1 place on it after "in", and 1 off it after "out".
                                                        [351,009,480,201] in (388,102) out (366,050)
    Mark the red ring and the star by its box and by 1 place.
                                                        [018,...] at (120,340); [351,...] at (388,102)
    Is (388,102) on the red ring?                       yes
    Look for the red ring. Is (388,102) on it?          yes
    Where is "the red ring"? ... [351,009,480,201] ... Is (388,102) on it?
                                                        yes
    Is (388,102) on the shape in [349,012,482,190]?     yes
    For the shape in [349,012,482,190], are (388,102)(366,050)(430,140) on it?
                                                        yes; no; no
    What is at (388,102)?                               the red ring
    Count all the red shapes.                           3

The point of the first question is well inside the visible part; those of the second one are uniform on it; those of
the third one are uniform off it, in the box widened by 10 %. The boxes of questions are inexact, like predicted ones;
where shapes share a box, an earlier turn with the phrase tells which one is meant.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from mllm_text import (
    NEXT_ANSWER,
    NEXT_QUESTION,
    Exchange,
    box_exchanges,
    boxes_answer,
    known_phrase,
    left_to_right,
    spans_in,
    with_fillers,
)

from sam4mllm.geometry import Box, Grid, SamPrompt
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes
from sam4mllm.synthetic.nouns import pick
from sam4mllm.synthetic.phrases import APART_IOU, Phrase, phrases_of
from sam4mllm.synthetic.scenes import Scene, Shape
from sam4mllm.targets.sampling import jittered_boxes

_Points = tuple[tuple[float, float], ...]
# The kinds of phrases, each for one object, that the questions about points use.
_SINGLE = ("attribute",) * 3 + ("position", "relation", "superlative", "reasoning") + ("overlap",) * 3
_WIDEN = 0.1
# Questions about several points have at most this many, since a row of tokens is limited.
_MOST_POINTS = 8
# Words that a question can ask for before the points on a shape and before those off it.
_NAMES = (
    ("in", "out"), ("yes", "no"), ("good", "bad"), ("inside", "outside"), ("hit", "miss"), ("a", "b"), ("x", "o"),
    ("*", "~"), ("#", "!"), ("on", "off"),
)  # fmt: skip


def exchanges(scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    """Return about two dozen exchanges about one scene, without repeated questions."""
    found = {each.question: each for each in [*box_exchanges(scene, rng), *point_exchanges(scene, rng)]}
    return list(found.values())


def point_exchanges(scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    """Return about a dozen exchanges about points of one scene."""
    counts = ((point_to, 2), (_places, 2), (_places_near, 2), (_mark, 3), (_is_on, 4), (_is_on_shape_in, 5))
    makers = [maker for maker, count in counts for _ in range(count)]
    found = [maker(scene, rng, phrase) for maker in makers if (phrase := _single(scene, rng)) is not None]
    found += [_what_is_at(scene, rng), _what_is_at(scene, rng)]
    plural = phrases_of(scene, rng, "plural")
    if plural is not None:
        question = f"Count {plural.text}."
        found.append(Exchange("count", question, str(len(plural.shapes)), (), spans_in(question, plural)))
    return found


def interior_point(shape: Shape) -> tuple[float, float]:
    """Return the center (x, y) of a pixel far from the mask's border, near its centroid and rather up and left."""
    depth = cv2.distanceTransform(np.pad(shape.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(shape.mask)
    y, x = rows.mean(), columns.mean()
    value = depth[rows, columns] - 0.15 * np.hypot(rows - y, columns - x) - 0.05 * (rows + columns)
    best = int(value.argmax())
    return float(columns[best]) + 0.5, float(rows[best]) + 0.5


def places_on(shape: Shape, rng: np.random.Generator, count: int) -> _Points:
    """Return the centers (x, y) of pixels on the visible part, from left to right."""
    return _sample(shape.mask, rng, count)


def places_near(scene: Scene, shape: Shape, rng: np.random.Generator, count: int) -> _Points:
    """Return the centers (x, y) of pixels off the visible part, in its box widened by 10 %, from left to right."""
    x1, y1, x2, y2 = shape.box.widen(_WIDEN, scene.size_wh)
    near = np.zeros_like(shape.mask)
    near[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    return _sample(near & ~shape.mask, rng, count)


def _sample(region: npt.NDArray[np.bool_], rng: np.random.Generator, count: int) -> _Points:
    rows, columns = np.nonzero(region)
    if rows.size == 0:
        rows, columns = np.nonzero(~region)
    picks = rng.integers(rows.size, size=count)
    return tuple(sorted((float(columns[i]) + 0.5, float(rows[i]) + 0.5) for i in picks))


def write_points(points: _Points, size_wh: tuple[int, int]) -> str:
    """Return points in pixels as text on the grid of 1000 x 1000 bins."""
    grid = Grid()
    return "".join("({:03d},{:03d})".format(*grid.to_bins(x, y, size_wh)) for x, y in points)


def _single(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    kind = _SINGLE[int(rng.integers(len(_SINGLE)))]
    return known_phrase(scene, rng, kind) or known_phrase(scene, rng, "attribute")


def _pointing(scene: Scene, kind: str, question: str, phrase: Phrase, points: _Points) -> Exchange:
    answer = write_points(points, scene.size_wh)
    flags = (kind != "near",) * len(points)
    spans = spans_in(question, phrase)
    return Exchange(kind, question, answer, phrase.shapes, spans, answer_points=points, points_on=flags)


def point_to(scene: Scene, _rng: np.random.Generator, phrase: Phrase) -> Exchange:
    """Ask for the interior point of the phrase's shape."""
    points = (interior_point(scene.shapes[phrase.shapes[0]]),)
    return _pointing(scene, "point", f"Point to {phrase.text}.", phrase, points)


def _places(scene: Scene, rng: np.random.Generator, phrase: Phrase) -> Exchange:
    count = int(rng.integers(2, 4))
    points = places_on(scene.shapes[phrase.shapes[0]], rng, count)
    return _pointing(scene, "places", f"Point to {count} places on {phrase.text}.", phrase, points)


def _places_near(scene: Scene, rng: np.random.Generator, phrase: Phrase) -> Exchange:
    count = int(rng.integers(1, 3))
    points = places_near(scene, scene.shapes[phrase.shapes[0]], rng, count)
    question = f"Point to {count} place{'s' * (count > 1)} near {phrase.text}, not on it."
    return _pointing(scene, "near", question, phrase, points)


def _mark(scene: Scene, rng: np.random.Generator, phrase: Phrase) -> Exchange:
    """Ask for points in words, with or without the box, of one object or of all those of a plural phrase or a pair."""
    several = phrases_of(scene, rng, ("plural", "pair")[int(rng.integers(2))]) if rng.random() < 0.5 else None
    phrase = several or phrase
    shapes = left_to_right(scene, phrase.shapes)
    count, count_near = int(rng.integers(1, 3 if several else 4)), int(rng.integers(0, 2 if several else 3))
    with_box = several is not None or rng.random() < 0.7
    question, (before_on, before_near) = _mark_question(phrase.text, with_box, count, count_near, rng)
    answers, points = [], []
    for index in shapes:
        on = places_on(scene.shapes[index], rng, count)
        near = places_near(scene, scene.shapes[index], rng, count_near)
        answer = f"{boxes_answer(scene, (index,))} " * with_box + f"{before_on} {write_points(on, scene.size_wh)}"
        answers.append(answer + f"{before_near} {write_points(near, scene.size_wh)}" * bool(near))
        points += [*on, *near]
    flags = (*[True] * count, *[False] * count_near) * len(shapes)
    spans = spans_in(question, phrase)
    return Exchange("mark", question, "; ".join(answers), shapes, spans, answer_points=tuple(points), points_on=flags)


def _mark_question(
    text: str, with_box: bool, count: int, count_near: int, rng: np.random.Generator
) -> tuple[str, tuple[str, str]]:
    """Return the question, and the words before the points on the shape and before those near it in the answer.

    Half of the questions name these words, which the model then has to use.
    """
    box = "its box and by " * with_box
    places = f"{count} place{'s' * (count > 1)}"
    if rng.random() < 0.5:
        question = f"Mark {text} by {box}{places}" + (f", and {count_near} near it." if count_near else ".")
        return question, ("at", ", near")
    on, off = _NAMES[int(rng.integers(len(_NAMES)))]
    question = f'Mark {text} by {box}{places} on it after "{on}"'
    return question + (f', and {count_near} off it after "{off}".' if count_near else "."), (on, f" {off}")


def _is_on(scene: Scene, rng: np.random.Generator, phrase: Phrase) -> Exchange:
    """Ask whether a point is on the phrase's shape, which may be in an earlier turn."""
    points, answer = _points_and_answer(scene, scene.shapes[phrase.shapes[0]], rng, 1)
    where = write_points(points, scene.size_wh)
    question = pick(
        rng,
        (
            f"Is {where} on {phrase.text}?",
            f"Look for {phrase.text}. Is {where} on it?",
            f"{_earlier_turn(scene, phrase)}Is {where} on it?",
        ),
    )
    return Exchange("on", question, answer, phrase.shapes, spans_in(question, phrase), question_points=points)


def _is_on_shape_in(scene: Scene, rng: np.random.Generator, phrase: Phrase) -> Exchange:
    """Ask whether each of one or several points is on the shape in a box, which is that of the phrase's shape."""
    (index,) = phrase.shapes
    box = scene.shapes[index].box
    # 1. The points, and the inexact box.
    count = 1 if rng.random() < 0.6 else int(rng.integers(2, _MOST_POINTS + 1))
    points, answer = _points_and_answer(scene, scene.shapes[index], rng, count)
    (inexact_xyxy,) = jittered_boxes(box, scene.size_wh, rng, share=_WIDEN, count=1)
    region = AnswerGrammar().write([SamPrompt(Box(*inexact_xyxy.tolist()))], scene.size_wh)
    # 2. The question; one point comes before or after the box, several come after it.
    where = write_points(points, scene.size_wh)
    question = f"For the shape in {region}, {'is' if count == 1 else 'are'} {where} on it?"
    if count == 1 and rng.random() < 0.5:
        question = f"Is {where} on the shape in {region}?"
    question = with_fillers(question, rng)
    # 3. Without an earlier turn, the box is the noun phrase; it has to tell which shape is meant.
    shares_box = any(i != index and shape.box.iou(box) > APART_IOU for i, shape in enumerate(scene.shapes))
    if shares_box or rng.random() < 0.6:
        question = _earlier_turn(scene, phrase) + question
        spans = spans_in(question, phrase)
    else:
        start = question.index(region)
        spans = ((start, start + len(region), phrase.shapes),)
    return Exchange("on", question, answer, phrase.shapes, spans, question_points=points)


def _earlier_turn(scene: Scene, phrase: Phrase) -> str:
    return f"{ask_boxes(phrase.text)}{NEXT_ANSWER}{boxes_answer(scene, phrase.shapes)}{NEXT_QUESTION}"


def _points_and_answer(scene: Scene, shape: Shape, rng: np.random.Generator, count: int) -> tuple[_Points, str]:
    """Return points of which about half are on the shape, most others near it, and yes or no for each."""
    points: list[tuple[float, float]] = []
    for share in rng.random(count):
        if share < 0.5:
            points += places_on(shape, rng, 1)
        elif share < 0.85:
            points += places_near(scene, shape, rng, 1)
        else:
            points += _sample(~shape.mask, rng, 1)
    return tuple(points), "; ".join("yes" if shape.mask[int(y), int(x)] else "no" for x, y in points)


def _what_is_at(scene: Scene, rng: np.random.Generator) -> Exchange:
    """Ask for the shape at a point, which is on a random shape in three of four cases."""
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    points = places_on(shape, rng, 1) if rng.random() < 0.75 else _sample(np.ones_like(shape.mask), rng, 1)
    ((x, y),) = points
    there = [each for each in scene.shapes if each.mask[int(y), int(x)]]
    answer = f"the {there[0].colour} {there[0].name}" if there else "nothing"
    question = f"What is at {write_points(points, scene.size_wh)}?"
    return Exchange("at", question, answer, question_points=points)
