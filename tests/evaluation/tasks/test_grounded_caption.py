"""Grounded captions: recall of annotated phrases, and precision of marked boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError
from sam4mllm.evaluation.tasks.answers import MarkedPhrase
from sam4mllm.evaluation.tasks.grounded_caption import GroundedCaptions, grounding_facts, marked_phrases
from sam4mllm.geometry import Box

MAN, HAT, DOG = Box(0, 0, 10, 20), Box(2, 0, 6, 4), Box(20, 10, 30, 20)
PAIR = Box(0, 0, 30, 20)


def caption(number: int, text: str, *mentions: tuple[str, tuple[Box, ...]], image: str = "7.jpg") -> GroundedCaption:
    found = []
    for phrase, boxes in mentions:
        start = text.index(phrase)
        objects = tuple(MaskObject(f"o/{box}", None, box) for box in boxes)
        found.append(Mention(start, start + len(phrase), objects))
    return GroundedCaption(f"flickr30k/val/7/{number}", Path(image), (40, 20), text, tuple(found))


CAPTIONS = [
    caption(0, "A man in a hat.", ("A man", (MAN,)), ("a hat", (HAT,))),
    caption(1, "A man with his dog.", ("A man", (MAN,)), ("his dog", (DOG,))),
    caption(2, "They rest.", ("They", (MAN, DOG))),
    caption(3, "Sky.", image="8.jpg"),
]


def marks(*pairs: tuple[str, list[Box]]) -> list[MarkedPhrase]:
    return [MarkedPhrase(phrase, tuple(boxes)) for phrase, boxes in pairs]


@pytest.mark.parametrize(
    ("marked", "any_box", "merged", "by_phrase", "precision"),
    [
        (marks(), "....", "....", "....", ""),
        # man, hat, dog, "They" (man and dog).
        (marks(("the man", [MAN])), "x..x", "x...", "x...", "x"),
        (marks(("a tall Man", [MAN]), ("dog", [DOG])), "x.xx", "x.x.", "x.x.", "xx"),
        (marks(("people", [MAN, DOG])), "x.xx", "...x", "....", "xx"),
        (marks(("they", [PAIR])), "....", "...x", "....", "."),
        (marks(("they", [DOG, MAN])), "x.xx", "...x", "...x", "xx"),
        # The box of another phrase with another noun.
        (marks(("a hat", [MAN])), "x..x", "x...", "....", "x"),
        (marks(("a man", [HAT])), ".x..", ".x..", "....", "x"),
    ],
)
def test_phrases_are_recalled_by_box_and_by_noun(
    marked: list[MarkedPhrase], any_box: str, merged: str, by_phrase: str, precision: str
) -> None:
    annotated = marks(("A man", [MAN]), ("a hat", [HAT]), ("his dog", [DOG]), ("They", [MAN, DOG]))
    found = {name: "".join(".x"[fact] for fact in facts) for name, facts in grounding_facts(marked, annotated).items()}
    assert found == {
        "recall_any": any_box,
        "recall_merged": merged,
        "recall_phrase": by_phrase,
        "precision": precision,
    }


def test_an_image_is_asked_for_once_and_its_captions_share_the_phrases() -> None:
    split = GroundedCaptions(CAPTIONS, "flickr30k", "val")
    assert [(query.id, query.image.name) for query in split.queries()] == [
        ("flickr30k/val/7/0", "7.jpg"),
        ("flickr30k/val/7/3", "8.jpg"),
    ]
    phrases = [{"phrase": "a man", "boxes_xyxy": [list(MAN), [30, 0, 40, 5]]}]
    scores = split.score([{"id": "flickr30k/val/7/0", "phrases": phrases}])
    # "A man" occurs in two captions with one box, and counts once. The box around both boxes of the answer is 40 x 20,
    # that of "They" 30 x 20.
    figures = {"recall_any": 2 / 4, "recall_merged": 1 / 4, "recall_phrase": 1 / 4, "precision": 1 / 2}
    assert scores.figures == pytest.approx({"phrases": 4, **figures})
    assert (scores.n, scores.missing, scores.comparable) == (2, 1, False)


def test_without_answers_recall_is_zero_and_precision_is_not_defined() -> None:
    scores = GroundedCaptions(CAPTIONS, "flickr30k", "val").score([{"id": "flickr30k/val/7/0", "status": "error"}])
    figures = {"recall_any": 0, "recall_merged": 0, "recall_phrase": 0, "precision": None}
    assert scores.figures == {"phrases": 4, **figures}
    assert (scores.missing, scores.errors) == (1, 1)


@pytest.mark.parametrize(
    ("text", "ends", "phrases"),
    [
        ("A red ring and a star.", [10, 21], ["A red ring", "and a star"]),
        ("Here, a ring, a star.", [12, 20], ["a ring", "a star"]),
        # The mark may be behind the full stop, and several marks may follow one phrase.
        ("A ring. Two stars.", [7, 18, 18], ["A ring", "Two stars"]),
        ("A ring", [], []),
        ("", [0], [""]),
    ],
)
def test_the_phrase_of_a_mark_is_the_text_before_it(text: str, ends: list[int], phrases: list[str]) -> None:
    found = marked_phrases(text, [(end, MAN) for end in ends])
    assert [each.phrase for each in found] == phrases
    assert sum(len(each.boxes) for each in found) == len(ends)


def test_captions_without_boxes_are_refused() -> None:
    with pytest.raises(DataError, match="flickr30k val: no phrase of a caption has a box"):
        GroundedCaptions(CAPTIONS[3:], "flickr30k", "val")
