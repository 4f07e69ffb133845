"""pix2emb: training conversations with locations, and answers parsed from the locations of replies."""

from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Question
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, Location, Turn
from tests.simulated import located

SIZE_WH = (100, 50)
IMAGE = Path("street.jpg")
PIX2EMB = Pix2Emb(prompt="both", sam_tokens=1, phrases=5)
N = len(LOCATION_TOKEN)


def masked(name: str, x: int) -> MaskObject:
    mask = np.zeros((50, 100), dtype=bool)
    mask[10:30, x : x + 20] = True
    return MaskObject(name, encode(mask), Box(x, 10, x + 20, 30))


LEFT, RIGHT = masked("left", 10), masked("right", 60)


def sample(phrase: str, *objects: MaskObject) -> Sample:
    return Sample(f"own/{phrase}", IMAGE, SIZE_WH, phrase, objects)


def ask(reply: str | Reply, method: Pix2Emb = PIX2EMB):
    (answer,) = method.ask(ScriptedEngine([reply]), [Question(IMAGE, "the cup", SIZE_WH)], 99)
    return answer


def test_the_training_conversation_word_for_word():
    boxed = MaskObject("far", None, Box(30, 0, 120, 60))
    samples = [sample("both", RIGHT, LEFT, boxed), sample("a cloud")]
    (conversation,) = PIX2EMB.training_conversations(samples, {})
    locations = (
        Location(Box(0.1, 0.2, 0.3, 0.6), 0, LEFT.rle),
        # A box beyond the image is clipped; an object without a mask has none in its location.
        Location(Box(0.3, 0, 1, 1), N, None),
        Location(Box(0.6, 0.2, 0.8, 0.6), 2 * N, RIGHT.rle),
    )
    assert conversation == Conversation(
        IMAGE,
        (
            Turn("user", 'Where is "both"? Mark each object.'),
            Turn("assistant", LOCATION_TOKEN * 3, True, locations),
            Turn("user", 'Where is "a cloud"? Mark each object.'),
            Turn("assistant", "No object found.", True),
        ),
    )


@pytest.mark.parametrize(("packing", "starts"), [("turns", [(0,), (0,)]), ("isolated", [(0, 2)])])
def test_phrases_are_packed_as_those_of_other_methods(packing, starts):
    method = Pix2Emb("both", 1, 5, packing)
    conversations = method.training_conversations([sample("left one", LEFT), sample("first", LEFT)], {})
    assert [each.branch_starts for each in conversations] == starts


def test_inference_asks_the_question_of_training_and_reads_the_locations():
    engine = ScriptedEngine([located(LOCATION_TOKEN * 2, Box(0.1, 0.2, 0.3, 0.6), Box(0.6, 0.2, 0.8, 0.6))])
    (answer,) = PIX2EMB.ask(engine, [Question(IMAGE, "both", SIZE_WH)], 99)
    (trained,) = PIX2EMB.training_conversations([sample("both", LEFT, RIGHT)], {})
    assert engine.asked[0].turns == trained.turns[:1]
    assert (answer.status, answer.text, answer.reason) == ("ok", trained.turns[1].text, None)
    assert [tuple(prompt.box) for prompt in answer.prompts] == [
        pytest.approx(tuple(item.box)) for item in (LEFT, RIGHT)
    ]
    assert [tokens.tolist() for tokens in answer.sam_tokens] == [[[0.0] * 4], [[1.0] * 4]]
    assert [each.text for each in answer.confidence] == [-0.5, -1.0]
    assert not answer.tokens_alone


def test_the_prompt_decides_what_sam_gets():
    reply = located(LOCATION_TOKEN, Box(0, 0, 1, 1))
    box, embedding = (ask(reply, Pix2Emb(prompt, 1, 5)) for prompt in ("box", "embedding"))
    assert box.sam_tokens == () and not box.tokens_alone
    assert len(embedding.sam_tokens) == 1 and embedding.tokens_alone
    assert box.prompts == embedding.prompts


@pytest.mark.parametrize("text", ["No object found.", " no object  found"])
def test_no_object(text):
    answer = ask(located(text))
    assert (answer.status, answer.prompts, answer.sam_tokens) == ("no_object", (), ())
    assert [each.text for each in answer.confidence] == [-2.0]


def test_words_around_the_locations_are_tolerated():
    answer = ask(located(f"It is here: {LOCATION_TOKEN}, and {LOCATION_TOKEN}.", Box(0, 0, 1, 1), Box(0, 0, 0.5, 1)))
    assert answer.status == "ok" and len(answer.prompts) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("the cup"), "neither <location> nor 'No object found.': 'the cup'"),
        (Reply(""), "neither <location> nor 'No object found.': ''"),
        # The text of a location token that other tokens spell has no location.
        (Reply(LOCATION_TOKEN), "neither <location> nor"),
        (located(LOCATION_TOKEN, Box(0, 0, 1, 1), finished=False), "cut off at max_new_tokens=99"),
        (located(f"{LOCATION_TOKEN} No object found.", Box(0, 0, 1, 1)), "has an object and 'No object found.'"),
        (located(f"{LOCATION_TOKEN} [1,2,3,4]", Box(0, 0, 1, 1)), "unreadable beside the locations: '[1,2,3,4]'"),
        (located(LOCATION_TOKEN * 1001, *[Box(0, 0, 1, 1)] * 1001), "more than 1000 locations"),
    ],
)
def test_malformed_answers(reply, reason):
    answer = ask(reply)
    assert (answer.status, answer.prompts) == ("malformed", ())
    assert reason in answer.reason


def test_an_engine_without_locations_is_refused():
    class TextEngine:
        def generate(self, conversations, max_new_tokens):
            return [Reply(LOCATION_TOKEN) for _ in conversations]

    with pytest.raises(ModelError, match=r"pix2emb needs the hidden states .* TextEngine .*--server"):
        PIX2EMB.ask(TextEngine(), [Question(IMAGE, "the cup", SIZE_WH)], 99)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"prompt": "point"}, "prompt must be box, embedding or both"),
        ({"sam_tokens": 0}, "1 or more"),
        ({"phrases": 0}, "1 or more"),
        ({"packing": "stacked"}, "packing must be"),
    ],
)
def test_settings_are_checked(changed, problem):
    with pytest.raises(RecipeError, match=problem):
        method_from_settings({**PIX2EMB.settings(), **changed})


def test_the_image_has_its_objects_as_the_boxes_of_a_preview():
    assert [prompt.box for prompt in PIX2EMB.preview_prompts(sample("both", RIGHT, LEFT), {})] == [RIGHT.box, LEFT.box]
