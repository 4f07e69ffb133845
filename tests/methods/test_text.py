"""Questions and answers in text: regions and marks in the form of each method, and marks read from generated text."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Method
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import Pqpp
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.methods.text import Mark, TextAnswer, TextQuestion, ask_text, mark_text, parse_text, region_text
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.mllm.server_engine import ServerEngine
from sam4mllm.prompts.conversation import LocatedText, Location
from sam4mllm.recipe.schema import MethodSection
from tests.simulated import located

SIZE = (1000, 500)
SHARES = Box(0.1, 0.2, 0.3, 0.4)
RING, STAR = Box(100, 100, 300, 200), Box(400, 200, 600, 400)
OBJECTS = [MaskObject("star", None, STAR), MaskObject("ring", None, RING)]
PPG = Ppg(2, 1, grid=1000, phrases=5)
PIX2EMB = Pix2Emb(prompt="both", sam_tokens=1, phrases=5)


def test_regions_of_a_question_are_written_as_boxes_or_as_tokens() -> None:
    question = "Is <region> left of <region>?"
    text = "Is [100,200,300,400] left of [400,400,600,800]?"
    assert region_text(PPG, question, [RING, STAR], SIZE) == text
    pqpp = method_from_settings(MethodSection(name="pqpp").model_dump())
    assert isinstance(pqpp, Pqpp) and region_text(pqpp, question, [RING, STAR], SIZE) == text
    assert region_text(PIX2EMB, question, [RING, STAR], SIZE) == LocatedText(
        "Is <location> left of <location>?",
        (Location(RING.to_shares(SIZE), 3), Location(STAR.to_shares(SIZE), 22)),
    )
    assert region_text(PIX2EMB, "Is it red?", [], SIZE) == "Is it red?"
    with pytest.raises(ValueError, match="has 2 regions; got 1 boxes"):
        region_text(PPG, question, [RING], SIZE)


def test_marks_of_an_answer_are_behind_the_words_in_reading_order() -> None:
    mentions = [(6, OBJECTS[1:]), (22, OBJECTS)]
    assert mark_text(PPG, "A ring beside the both.", mentions, SIZE) == (
        "A ring [100,200,300,400] beside the both [100,200,300,400]; [400,400,600,800]."
    )
    marked = mark_text(PIX2EMB, "A ring beside the both.", mentions, SIZE)
    assert isinstance(marked, LocatedText)
    assert marked.text == "A ring<location> beside the both<location><location>."
    assert [each.start for each in marked.locations] == [6, 32, 42]
    assert [each.box for each in marked.locations] == [each.to_shares(SIZE) for each in (RING, RING, STAR)]
    assert mark_text(PPG, "Sky.", [], SIZE) == mark_text(PIX2EMB, "Sky.", [], SIZE) == "Sky."


def test_the_masks_of_marked_objects_are_kept_for_training() -> None:
    rle = {"size": [500, 1000], "counts": "x"}
    marked = mark_text(PIX2EMB, "A ring.", [(6, [MaskObject("ring", rle, RING)])], SIZE)  # type: ignore[arg-type]
    assert isinstance(marked, LocatedText) and marked.locations[0].rle == rle


@pytest.mark.parametrize("method", [PPG, PIX2EMB], ids=["ppg", "pix2emb"])
def test_marks_that_are_written_are_read_again(method: Method) -> None:
    text, mentions = "A ring beside the both, on grey.", [(6, OBJECTS[1:]), (22, OBJECTS)]
    written = mark_text(method, text, mentions, SIZE)
    if isinstance(written, LocatedText):
        reply = located(written.text, *(each.box for each in written.locations))
    else:
        reply = Reply(written)
    answer = parse_text(method, reply, SIZE)
    assert answer.text == text
    assert [mark.end for mark in answer.marks] == [6, 22, 22]
    for mark, truth in zip(answer.marks, (RING, RING, STAR), strict=True):
        assert mark.box == pytest.approx(tuple(truth), abs=1)


@pytest.mark.parametrize(
    ("generated", "text", "ends"),
    [
        ("A ring [100,200,300,400].", "A ring.", [6]),
        ("A ring[100,200,300,400] is red", "A ring is red", [6]),
        ("A ring [ 100, 200,300,400 ];[1,2,3,4] and [1,2,3,4]", "A ring and", [6, 6, 10]),
        ("[100,200,300,400]", "", [0]),
        ("  [100,200,300,400] A ring [1,2,3,4]", "A ring", [0, 6]),
        ("  A ring [1,2,3,4] ", "A ring", [6]),
        # Numbers beyond the grid and other brackets stay in the text.
        ("A ring [100,200,300,1000]", "A ring [100,200,300,1000]", []),
        ("A ring [1,2,3] (1,2,3,4) [1", "A ring [1,2,3] (1,2,3,4) [1", []),
        ("", "", []),
    ],
)
def test_boxes_in_a_generated_text_are_marks(generated: str, text: str, ends: list[int]) -> None:
    answer = parse_text(PPG, Reply(generated), SIZE)
    assert (answer.text, [mark.end for mark in answer.marks]) == (text, ends)
    assert answer.finished and all(mark.sam_tokens is None for mark in answer.marks)


@pytest.mark.parametrize(
    ("generated", "text", "ends"),
    [
        ("A ring<location> and <location> <location>two.", "A ring andtwo.", [6, 10, 10]),
        ("<location>", "", [0]),
        ("A ring", "A ring", []),
    ],
)
def test_location_tokens_in_a_generated_text_are_marks(generated: str, text: str, ends: list[int]) -> None:
    answer = parse_text(PIX2EMB, located(generated, *[SHARES] * len(ends)), SIZE)
    assert (answer.text, [mark.end for mark in answer.marks]) == (text, ends)
    assert all(mark.box == pytest.approx((100, 100, 300, 200)) for mark in answer.marks)
    assert all(mark.sam_tokens is not None for mark in answer.marks)


def test_a_text_of_many_spaces_is_read_in_linear_time() -> None:
    answer = parse_text(PPG, Reply("a" + " " * 200_000 + "b"), SIZE)
    assert answer.marks == ()


def test_questions_are_asked_in_the_form_of_the_method() -> None:
    questions = [
        TextQuestion(Path("a.png"), SIZE, "What is at <region>?", (RING,)),
        TextQuestion("b.png", SIZE, "Cats?"),
    ]
    engine = ScriptedEngine({"What is at": "A ring [1,2,3,4]", "Cats": Reply("no", finished=False)})
    answers = ask_text(PPG, engine, questions, 16)
    assert [each.turns[0].text for each in engine.asked] == ["What is at [100,200,300,400]?", "Cats?"]
    assert answers == [TextAnswer("A ring", (Mark(6, Box(1.5, 1.25, 3.5, 2.25)),)), TextAnswer("no", (), False)]

    engine = ScriptedEngine({"What is at": located("A ring<location>", SHARES), "Cats": "no"})
    first, second = ask_text(PIX2EMB, engine, questions, 16)
    assert engine.asked[0].turns[0].text == "What is at <location>?"
    assert engine.asked[0].turns[0].locations == (Location(RING.to_shares(SIZE), 11),)
    assert (first.text, len(first.marks), second) == ("A ring", 1, TextAnswer("no"))


def test_a_server_cannot_decode_locations() -> None:
    server = object.__new__(ServerEngine)
    with pytest.raises(ModelError, match="does not return; run the model in this process"):
        ask_text(PIX2EMB, server, [TextQuestion("a.png", SIZE, "Cats?")], 16)


def test_a_question_has_a_box_for_each_region() -> None:
    with pytest.raises(DataError, match=r"has <region> 1 times, and 0 boxes are given; write <region> once"):
        TextQuestion("a.png", SIZE, "What is at <region>?")
    with pytest.raises(DataError, match=r"has <region> 0 times, and 1 boxes"):
        TextQuestion("a.png", SIZE, "What is this?", (RING,))
