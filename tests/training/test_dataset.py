from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.masks import encode
from sam4mllm.data.mixture import Mixture
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.ppg import Ppg
from sam4mllm.prompts.conversation import (
    LOCATION_TOKEN,
    Conversation,
    LocatedText,
    Location,
    isolated_conversation,
    training_conversation,
)
from sam4mllm.training.dataset import answer_digests, count_text, digest, make_training_set, spread

METHOD = Ppg(0, 0, 10, 5)


@dataclass(frozen=True)
class Target:
    prompts: tuple[SamPrompt, ...]


def sample(image: str, phrase: str, *objects: str) -> Sample:
    rle = encode(np.ones((10, 10), dtype=bool))
    made = tuple(MaskObject(each, rle, Box(0, 0, 10, 10)) for each in objects)
    return Sample(f"{image}/{phrase}", Path(image), (10, 10), phrase, made)


def mixture(*passes: list[Sample], chats: tuple[Dialogue, ...] = ()) -> Mixture:
    return Mixture(tuple(map(tuple, passes)), chats, 0, (), {})


TARGETS = {name: Target((SamPrompt(Box(1, 1, 5, 5)),)) for name in ("a", "b")} | {"hard": Target(())}


def test_phrases_with_targets_become_conversations_and_chat_follows():
    first = [
        sample("1.jpg", "ring", "a"),
        sample("2.jpg", "star", "b"),
        sample("1.jpg", "ring", "b"),
        sample("1.jpg", "cloud"),
        sample("2.jpg", "cross", "hard"),
    ]
    chat = Dialogue("chat/1", Path("3.jpg"), (("Is it red?", "Yes."), ("What else?", "Round.")))
    training_set = make_training_set(mixture(first, first[:1], chats=(chat,)), TARGETS, METHOD)
    assert (training_set.phrases, training_set.chats, training_set.without_target) == (5, 1, 1)
    # A phrase of the second epoch is in another conversation.
    assert [(str(c.image), len(c.turns) // 2) for c in training_set.conversations] == [
        ("1.jpg", 3),
        ("2.jpg", 1),
        ("1.jpg", 1),
        ("3.jpg", 2),
    ]
    assert [(turn.text, turn.supervised) for turn in training_set.conversations[-1].turns] == [
        ("Is it red?", False),
        ("Yes.", True),
        ("What else?", False),
        ("Round.", True),
    ]


def test_regions_and_captions_come_between_phrases_and_chat():
    cup = MaskObject("cup", None, Box(1, 2, 5, 6))
    regions = ((sample("2.jpg", "a ring", "a"), sample("1.jpg", "a star", "b"), sample("2.jpg", "a cross", "b")),)
    caption = GroundedCaption("c/1", Path("4.jpg"), (10, 10), "A cup.", (Mention(0, 5, (cup,)),))
    chat = Dialogue("chat/1", Path("3.jpg"), (("Is it red?", "Yes."),))
    mixed = replace(mixture([sample("1.jpg", "ring", "a")], chats=(chat,)), regions=regions, captions=(caption,))
    training_set = make_training_set(mixed, TARGETS, METHOD)
    assert (training_set.phrases, training_set.regions, training_set.captions, training_set.chats) == (1, 3, 1, 1)
    assert [(str(each.image), each.turns[-1].text) for each in training_set.conversations] == [
        ("1.jpg", "[1,1,5,5]"),
        ("2.jpg", "a cross"),
        ("1.jpg", "a star"),
        ("4.jpg", "A cup [1,2,5,6]."),
        ("3.jpg", "Yes."),
    ]
    regions_twice = ["region-caption"] * 2
    assert training_set.tasks == ["segment", *regions_twice, "grounded-caption", "chat"]
    assert count_text(1, 3, 1, 1) == "1 phrases, 3 regions, 1 grounded captions and 1 chats"
    assert count_text(1200, 0, 0, 1) == "1,200 phrases and 1 chats"


def test_the_digests_of_conversations_depend_on_their_locations():
    def conversation(*locations: Location) -> Conversation:
        answer = LocatedText(LOCATION_TOKEN, locations) if locations else LOCATION_TOKEN
        return training_conversation("1.jpg", [("where?", answer)])

    boxes = [Location(Box(0, 0, share, 1), 0) for share in (0.5, 0.6)]
    conversations = [conversation(), *map(conversation, boxes)]
    assert len({digest([each]) for each in conversations}) == 3
    assert len(answer_digests(conversations)) == 3
    assert digest([conversation(boxes[0])]) == digest([conversation(boxes[0])])


def test_the_digest_depends_on_the_branches():
    pairs = [("a?", "1"), ("b?", "2")]
    turns, isolated = training_conversation("1.jpg", pairs), isolated_conversation("1.jpg", [pairs[:1], pairs[1:]])
    assert digest([turns]) != digest([isolated])
    assert digest([isolated_conversation("1.jpg", [pairs])]) == digest([turns])


def test_an_empty_training_set_is_an_error():
    with pytest.raises(DataError, match="the training set is empty: 1 phrases have no target"):
        make_training_set(mixture([sample("1.jpg", "cross", "hard")]), TARGETS, METHOD)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(0, 3, []), (2, 3, [0, 1]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 2, 5, 7]), (5, 1, [0])],
)
def test_a_part_is_spread_evenly(total, count, expected):
    samples = [sample("1.jpg", str(index)) for index in range(total)]
    assert [int(each.phrase) for each in spread(samples, count)] == expected
