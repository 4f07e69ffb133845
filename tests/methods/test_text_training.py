"""Training conversations about regions and grounded captions, for every method."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import METHODS, method_from_settings
from sam4mllm.methods.text_training import caption_conversations, region_conversations
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.recipe.schema import MethodSection

IMAGE, SIZE_WH = Path("street.jpg"), (100, 50)
CUP, DOG, CAT = (MaskObject(name, None, Box(x, 10, x + 20, 30)) for name, x in (("cup", 10), ("dog", 60), ("cat", 40)))
BOXES = {"cup": "[100,200,300,600]", "dog": "[600,200,800,600]", "cat": "[400,200,600,600]"}


def make_method(name: str, **settings: object) -> Method:
    section = MethodSection.model_validate({"name": name, "coordinates": "grid", **settings})
    return method_from_settings(section.model_dump())


def region(phrase: str, *objects: MaskObject) -> Sample:
    return Sample(f"own/{phrase}", IMAGE, SIZE_WH, phrase, objects)


@pytest.mark.parametrize("name", METHODS)
def test_a_region_is_in_the_question_and_its_phrase_is_the_answer(name: str) -> None:
    (conversation,) = region_conversations(make_method(name), [region("a cup", CUP), region("my dog", DOG)])
    first, second = conversation.branches
    located = name == "pix2emb"
    for branch, item, phrase in ((first, CUP, "a cup"), (second, DOG, "my dog")):
        question, answer = branch.turns
        assert question.text == f"What is at {LOCATION_TOKEN if located else BOXES[item.id]}?"
        assert (answer.text, answer.supervised, answer.locations) == (phrase, True, ())
        assert [each.box for each in question.locations] == ([item.box.to_shares(SIZE_WH)] if located else [])


def test_regions_are_packed_as_phrases_are() -> None:
    samples = [region("a cup", CUP), region("the mug", CUP), region("my dog", DOG)]
    in_turns = region_conversations(make_method("ppg", packing="turns"), samples)
    # Two descriptions of one region are in different conversations.
    assert [[turn.text for turn in each.turns[1::2]] for each in in_turns] == [["a cup", "my dog"], ["the mug"]]
    isolated = region_conversations(make_method("ppg", phrases=2), samples)
    assert [each.branch_starts for each in isolated] == [(0, 2), (0,)]


def test_a_region_caption_of_several_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="sample own/both: a region caption is about one object; got 2"):
        region_conversations(make_method("ppg"), [region("both", CUP, DOG)])


@pytest.mark.parametrize("name", METHODS)
def test_a_caption_marks_its_objects_behind_their_words(name: str) -> None:
    text = "A cup near pets."
    caption = GroundedCaption("c/1", IMAGE, SIZE_WH, text, (Mention(0, 5, (CUP,)), Mention(11, 15, (DOG, CAT))))
    (conversation,) = caption_conversations(make_method(name), [caption])
    question, answer = conversation.turns
    assert question.text == "Describe the image, and mark each object that you name."
    assert answer.supervised
    if name == "pix2emb":
        assert answer.text.replace(LOCATION_TOKEN, "").replace(" .", ".").replace("  ", " ") == text
        boxes = [each.box for each in answer.locations]
        assert boxes == [each.box.to_shares(SIZE_WH) for each in (CUP, CAT, DOG)]
        assert all(answer.text.startswith(LOCATION_TOKEN, each.start) for each in answer.locations)
    else:
        assert answer.text == f"A cup {BOXES['cup']} near pets {BOXES['cat']}; {BOXES['dog']}."
        assert answer.locations == ()


def test_a_caption_without_mentions_is_plain_text() -> None:
    (conversation,) = caption_conversations(
        make_method("pix2emb"), [GroundedCaption("c/2", IMAGE, SIZE_WH, "A street.", ())]
    )
    assert conversation.turns[1].text == "A street." and conversation.turns[1].locations == ()
