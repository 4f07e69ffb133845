"""POPE: answers are parsed by the rules of the official evaluation, and counted with "yes" as the positive class."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.errors import DataError
from sam4mllm.evaluation.tasks.pope import Pope, answers_yes, pope_figures


def dialogue(number: int, label: str, image: str = "a.jpg") -> Dialogue:
    return Dialogue(f"pope/f/{number}", Path(image), ((f"Is there a cat {number}?", label),))


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("yes", True),
        ("No", False),
        ("no", False),
        ("No.", False),
        ("No, there is no cat.", False),
        ("There is not a cat", False),
        ("Yes. There is no dog.", True),
        ("I do not know", False),
        ("Certainly", True),
        ("", True),
        # The official rules know these three words in this spelling alone.
        ("NO", True),
        ("Nothing", True),
        ("There isn't a cat", True),
        ("cat:no", True),
        ("Yes,no", True),
        ("Well, no, it is", False),
    ],
)
def test_an_answer_is_no_if_its_first_sentence_has_such_a_word(text: str, yes: bool) -> None:
    assert answers_yes(text) is yes


def test_figures_equal_those_computed_by_hand() -> None:
    # 3 true positives, 1 false positive, 4 true negatives, 2 false negatives.
    pairs = [(True, True)] * 3 + [(True, False)] + [(False, False)] * 4 + [(False, True)] * 2
    assert pope_figures(pairs) == pytest.approx(
        {"accuracy": 7 / 10, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes": 4 / 10}
    )


def test_figures_without_a_denominator_are_not_defined() -> None:
    assert pope_figures([(False, False)]) == {
        **{"accuracy": 1.0, "precision": None, "recall": None, "f1": None},
        "yes": 0.0,
    }
    assert set(pope_figures([]).values()) == {None}


def test_the_figures_of_the_paper_fit_2910_questions() -> None:
    # NExT-Chat on POPE random: 1228 of 1500 with the label yes, and 86 of 1410 with the label no, answered "yes".
    pairs = [(True, True)] * 1228 + [(False, True)] * 272 + [(True, False)] * 86 + [(False, False)] * 1324
    printed = {"accuracy": 0.8770, "precision": 0.9346, "recall": 0.8187, "f1": 0.8728, "yes": 0.4515}
    assert pope_figures(pairs) == pytest.approx(printed, abs=6e-5)


def test_a_question_without_an_answer_is_wrong() -> None:
    pope = Pope([dialogue(1, "yes"), dialogue(2, "no"), dialogue(3, "no")], "pope", "f")
    lines = [{"id": "pope/f/1", "answer": "Yes."}, {"id": "pope/f/3", "status": "error", "answer": "No."}]
    scores = pope.score(lines)
    assert (scores.n, scores.missing, scores.errors) == (3, 1, 1)
    assert scores.figures == pytest.approx({"accuracy": 1 / 3, "precision": 1 / 3, "recall": 1, "f1": 0.5, "yes": 1})


def test_the_questions_are_asked_as_they_are() -> None:
    (query,) = Pope([dialogue(1, "yes")], "pope", "f").queries()
    assert (query.id, query.image, query.phrase) == ("pope/f/1", Path("a.jpg"), "Is there a cat 1?")


@pytest.mark.parametrize(
    ("split", "yes", "no", "images", "comparable"),
    [
        ("coco_pope_random", 1500, 1410, 500, True),
        ("coco_pope_random", 1500, 1500, 500, False),
        ("coco_pope_popular", 1500, 1500, 500, True),
        ("coco_pope_popular", 1500, 1499, 500, False),
        ("coco_pope_adversarial", 1500, 1500, 499, False),
        ("coco_repope_popular", 1500, 1500, 500, False),
        ("mine", 1500, 1500, 500, False),
    ],
)
def test_published_figures_are_for_the_files_that_they_are_on(
    split: str, yes: int, no: int, images: int, comparable: bool
) -> None:
    labels = ["yes"] * yes + ["no"] * no
    dialogues = [dialogue(index, label, f"{index % images}.jpg") for index, label in enumerate(labels)]
    assert Pope(dialogues, "pope", split).comparable is comparable
    assert not Pope(dialogues, "pope", split, limited=True).comparable


def test_other_chat_is_refused() -> None:
    with pytest.raises(DataError, match="the answer yes or no"):
        Pope([dialogue(1, "maybe")], "chat", "f")
    with pytest.raises(DataError, match="about an image"):
        Pope([Dialogue("chat/1", None, (("Is ice cold?", "yes"),))], "chat", "f")
