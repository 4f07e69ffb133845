"""The questions that are put to a model, in training and in use alike: one wording, here and nowhere else.

This module knows no answers and no images.
"""

from __future__ import annotations

from collections.abc import Sequence


def ask_boxes(phrase: str) -> str:
    """The question for the boxes of what `phrase` means."""
    return f"{_where_is(phrase)} Box each object."


def ask_prompts(phrase: str, positives: int, negatives: int) -> str:
    """The question for boxes with `positives` points on each object and `negatives` off it.

    With 0 and 0 it is `ask_boxes`, so that a model which was only ever asked for boxes reads what it knows.

    Raises:
        ValueError: a negative number of points.
    """
    if positives < 0 or negatives < 0:
        raise ValueError(f"the numbers of points are 0 or more; got {positives} on and {negatives} off the object")
    parts: list[str] = []
    for count, side in ((positives, "on"), (negatives, "off")):
        if count:
            noun = "" if parts else " point" if count == 1 else " points"
            parts.append(f"{count}{noun} {side} it")
    if not parts:
        return ask_boxes(phrase)
    return f"{_where_is(phrase)} Box each object, with {' and '.join(parts)}."


def ask_points(box: str, points: Sequence[str]) -> str:
    """The question whether each of the `points` is on the object in `box`, all written as answers write them."""
    if len(points) == 1:
        return f"Is the point {points[0]} on the object in {box}? Answer yes or no."
    return f"Which points are on the object in {box}? {''.join(points)} Answer yes or no for each."


def ask_list() -> str:
    """The question for the boxes of every object of the image, which names none; models learn to see with it."""
    return "Box each object."


def _where_is(phrase: str) -> str:
    """Runs of white space in the phrase become one space, so that a stray one does not make another question."""
    return f'Where is "{" ".join(phrase.split())}"?'
