"""Yes/no questions and the text of their answers."""

from __future__ import annotations

import pytest

from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.prompts.questions import ask_points
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion, write_answers


def test_answers_word_for_word() -> None:
    assert write_answers([True]) == "yes"
    assert write_answers([True, False, False]) == "yes, no, no"


def test_questions_word_for_word() -> None:
    assert ask_points("[1,2,3,4]", ["(5,6)"]) == "Is the point (5,6) on the object in [1,2,3,4]? Answer yes or no."
    assert ask_points("[1,2,3,4]", ["(5,6)", "(7,8)"]) == (
        "Which points are on the object in [1,2,3,4]? (5,6)(7,8) Answer yes or no for each."
    )


def test_a_query_follows_an_answer_and_asks_about_at_least_one_point() -> None:
    with pytest.raises(ValueError, match="follows an answer"):
        YesNoQuery(inference_conversation("a.png", "?"), ())
    history = Conversation("a.png", (Turn("user", "?"), Turn("assistant", "!")))
    with pytest.raises(ValueError, match="about at least one point"):
        YesNoQuery(history, (YesNoQuestion("?", 0),))
