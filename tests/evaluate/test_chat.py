"""Answers to a chat file as figures."""

import pytest

from sam4mllm.evaluate.chat import ChatScores, chat_report, score_chat, words


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Yes.", "yes", True),
        ("Yes, there is a cup.", "Yes", True),
        ("There is no cup.", "no", True),
        ("No, although yes would be nice", "no", True),
        ("no", "Yes.", False),
        ("I cannot tell.", "no", False),
        ("Nothing", "no", False),
        ("", "yes", False),
    ],
)
def test_yes_and_no(answer: str, truth: str, right: bool) -> None:
    assert score_chat([(answer, truth)]) == ChatScores(1, float(right), 0, None, 0)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("red", "Red.", True),
        ("The red cup", "a red cup", True),
        ("red cup", "red", False),
        ("3.5", "3.5", True),
        ("35", "3.5", False),
        ("don't know", "Don't know!", True),
        ("", "two", False),
        ("yes, two", "two", False),
        ("Ärmel", "ärmel", True),
    ],
)
def test_short_answers(answer: str, truth: str, right: bool) -> None:
    assert score_chat([(answer, truth)]) == ChatScores(0, None, 1, float(right), 0)


def test_long_answers_are_counted_and_not_judged() -> None:
    long = "a cup that stands on the left of the table"
    assert score_chat([(long, long), ("yes", "no"), ("yes", "yes")]) == ChatScores(2, 0.5, 0, None, 1)
    assert score_chat([]) == ChatScores(0, None, 0, None, 0)


def test_words_leave_case_punctuation_and_articles_out() -> None:
    assert words("The RED, an 3.5-inch cup's!") == ["red", "3.5", "inch", "cup's"]


def test_the_report_has_a_row_for_each_model() -> None:
    report = chat_report({"tuned": ChatScores(4, 0.75, 0, None, 2), "base": ChatScores(4, 1.0, 0, None, 2)})
    assert report.splitlines()[0] == "4 yes/no questions, 0 with a short answer, 2 not judged"
    assert [line.split() for line in report.splitlines()[2:]][2:] == [["tuned", "75.0"], ["base", "100.0"]]
