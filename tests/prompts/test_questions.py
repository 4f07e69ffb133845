"""The wording of the questions: a changed word would be a new question to every trained adapter."""

from __future__ import annotations

import pytest

from sam4mllm.prompts.questions import (
    ask_boxes,
    ask_grounded_caption,
    ask_list,
    ask_locations,
    ask_prompts,
    ask_region_caption,
)


def test_ask_boxes() -> None:
    assert ask_boxes("the man in red") == 'Where is "the man in red"? Box each object.'


def test_ask_locations() -> None:
    assert ask_locations(" the man\nin red") == 'Where is "the man in red"? Mark each object.'


def test_ask_list() -> None:
    assert ask_list() == "Box each object."


def test_questions_that_are_answered_in_words() -> None:
    assert ask_region_caption() == "What is at <region>?"
    assert ask_grounded_caption() == "Describe the image, and mark each object that you name."


@pytest.mark.parametrize(
    ("positives", "negatives", "suffix"),
    [
        (2, 1, "Box each object, with 2 points on it and 1 off it."),
        (1, 2, "Box each object, with 1 point on it and 2 off it."),
        (1, 0, "Box each object, with 1 point on it."),
        (3, 0, "Box each object, with 3 points on it."),
        (0, 1, "Box each object, with 1 point off it."),
        (0, 2, "Box each object, with 2 points off it."),
        (0, 0, "Box each object."),
    ],
)
def test_ask_prompts_counts_the_points(positives: int, negatives: int, suffix: str) -> None:
    assert ask_prompts("a ring", positives, negatives) == f'Where is "a ring"? {suffix}'


def test_white_space_in_the_phrase_does_not_change_the_question() -> None:
    assert ask_prompts("  the \n man ", 2, 1) == ask_prompts("the man", 2, 1)


@pytest.mark.parametrize(("positives", "negatives"), [(-1, 0), (0, -1)])
def test_negative_numbers_of_points_are_refused(positives: int, negatives: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        ask_prompts("a ring", positives, negatives)
