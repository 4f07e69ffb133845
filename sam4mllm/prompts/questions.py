"""The wording of all questions to the model, the same in training and at inference."""

from __future__ import annotations

from collections.abc import Sequence

REGION = "<region>"
"""The text in a question that stands for a region; a method replaces it by its own form of the region's box."""


def ask_boxes(phrase: str) -> str:
    """Return the question for the boxes of the objects that `phrase` refers to."""
    return f"{_where_is(phrase)} Box each object."


def ask_prompts(phrase: str, positives: int, negatives: int) -> str:
    """Return the question for boxes with `positives` points on each object and `negatives` off it.

    With 0 and 0 it is `ask_boxes`, the question that a model pre-trained on boxes alone has seen.

    Raises:
        ValueError: A negative number of points.
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


def ask_locations(phrase: str) -> str:
    """Return the question for the locations of the objects that `phrase` refers to, as location tokens."""
    return f"{_where_is(phrase)} Mark each object."


def ask_points(box: str, points: Sequence[str]) -> str:
    """Return the question of whether each of `points` is on the object in `box`; all are in the text of answers."""
    if len(points) == 1:
        return f"Is the point {points[0]} on the object in {box}? Answer yes or no."
    return f"Which points are on the object in {box}? {''.join(points)} Answer yes or no for each."


def ask_region_caption() -> str:
    """Return the question for a phrase that describes a region, which `REGION` marks."""
    return f"What is at {REGION}?"


def ask_grounded_caption() -> str:
    """Return the question for a caption of the image that marks its objects."""
    return "Describe the image, and mark each object that you name."


def ask_list() -> str:
    """Return the question for the boxes of all objects of the image, for pre-training."""
    return "Box each object."


def _where_is(phrase: str) -> str:
    """Return the question's first sentence; white space in the phrase is collapsed, so that it changes no question."""
    return f'Where is "{" ".join(phrase.split())}"?'
