from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import RecipeError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.methods.base import Question, has_targets
from sam4mllm.methods.parsing import reading_order
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.scripted_engine import ScriptedEngine

SIZE_WH = (100, 50)
IMAGE = Path("street.jpg")


@dataclass(frozen=True)
class Target:
    prompts: tuple[SamPrompt, ...]


def prompt(x: float, *labels: int) -> SamPrompt:
    return SamPrompt(
        Box(x, 10, x + 20, 30), tuple(Point(x + 5 + index, 20, label) for index, label in enumerate(labels))
    )


def sample(name: str, *object_ids: str, image: Path = IMAGE) -> Sample:
    rle = encode(np.ones((50, 100), dtype=bool))
    objects = tuple(MaskObject(each, rle, Box(0, 0, 100, 50)) for each in object_ids)
    return Sample(f"refcoco/val/{name}/0", image, SIZE_WH, name, objects)


TARGETS = {"left": Target((prompt(10, 1, 0, 1),)), "right": Target((prompt(60, 1, 1, 0),)), "hard": Target(())}
PPG = Ppg(positives=2, negatives=1, grid=1000, phrases=5)


def texts(conversation) -> list[str]:
    return [turn.text for turn in conversation.turns]


def test_the_training_conversation_word_for_word():
    (conversation,) = PPG.training_conversations([sample("both", "right", "left"), sample("a cloud")], TARGETS)
    assert conversation.image == IMAGE
    assert texts(conversation) == [
        'Where is "both"? Box each object, with 2 points on it and 1 off it.',
        "[100,200,300,600] +(150,400)(170,400) -(160,400); [600,200,800,600] +(650,400)(660,400) -(670,400)",
        PPG.question("a cloud"),
        "No object found.",
    ]
    assert [turn.supervised for turn in conversation.turns] == [False, True] * 2


def test_objects_with_boxes_and_no_masks_are_trained_on_as_boxes():
    boxes = tuple(MaskObject(f"b{x}", None, Box(x, 10, x + 20, 30)) for x in (60, 10))
    boxed = Sample("own/1", IMAGE, SIZE_WH, "the two", boxes)
    assert has_targets(boxed, {})
    (conversation,) = PPG.training_conversations([boxed, sample("the left one", "left")], TARGETS)
    assert texts(conversation)[:2] == [
        'Where is "the two"? Box each object.',
        "[100,200,300,600]; [600,200,800,600]",
    ]
    assert texts(conversation)[2] == PPG.question("the left one")


def test_training_and_inference_use_the_same_question():
    trained = PPG.training_conversations([sample("the left one", "left")], TARGETS)[0]
    engine = ScriptedEngine([trained.turns[1].text])
    (answer,) = PPG.ask(engine, [Question(IMAGE, "the left one", SIZE_WH)], 99)
    assert texts(engine.asked[0]) == [trained.turns[0].text]
    assert answer.status == "ok" and answer.reason is None
    (parsed,) = answer.prompts
    written = TARGETS["left"].prompts[0]
    assert np.allclose(parsed.box, written.box, atol=0.06)
    assert [point.label for point in parsed.points] == [1, 1, 0]


def test_phrases_share_a_conversation_up_to_the_limit():
    samples = [sample(f"cloud {n}", f"o{n}") for n in range(5)]
    targets = {f"o{n}": Target((prompt(n, 1, 1, 0),)) for n in range(5)}
    lengths = [len(c.turns) // 2 for c in Ppg(2, 1, 1000, phrases=2).training_conversations(samples, targets)]
    assert lengths == [2, 2, 1]


def test_phrases_about_the_same_objects_are_in_different_conversations():
    samples = [
        sample("a", "left"),
        sample("b", "left"),
        sample("c", "right"),
        sample("d", "left"),
        sample("e", "right"),
    ]
    phrases = [[text.split('"')[1] for text in texts(c)[::2]] for c in PPG.training_conversations(samples, TARGETS)]
    assert phrases == [["a", "c"], ["b", "e"], ["d"]]


def test_a_phrase_is_skipped_if_one_of_its_objects_has_no_target():
    samples = [sample("both", "left", "hard"), sample("left", "left"), sample("gone", "unknown")]
    (conversation,) = PPG.training_conversations(samples, TARGETS)
    assert texts(conversation)[::2] == [PPG.question("left")]
    assert [has_targets(each, TARGETS) for each in samples] == [False, True, False]
    assert PPG.training_conversations(samples[:1], TARGETS) == []


def test_each_rank_of_kept_prompts_is_a_training_target_once():
    targets = {"left": Target((prompt(10, 1, 1, 0), prompt(11, 1, 1, 0))), "right": TARGETS["right"]}
    first, second = PPG.training_conversations([sample("both", "left", "right"), sample("none")], targets)
    assert texts(first)[1].startswith("[100,") and texts(second)[1].startswith("[110,")
    assert texts(first)[1].split("; ")[1] == texts(second)[1].split("; ")[1]


def test_with_zero_points_the_targets_are_boxes_alone():
    boxes = Ppg(0, 0, 1000, 5)
    (conversation,) = boxes.training_conversations([sample("the left one", "left")], TARGETS)
    assert texts(conversation) == ['Where is "the left one"? Box each object.', "[100,200,300,600]"]


@pytest.mark.parametrize(
    ("text", "status", "count"),
    [("No object found.", "no_object", 0), ("[1,2,3", "malformed", 0), ("", "malformed", 0), ("[1,2,3,4]", "ok", 1)],
)
def test_the_three_statuses_of_an_answer(text, status, count):
    (answer,) = PPG.ask(ScriptedEngine([text]), [Question(IMAGE, "it", SIZE_WH)], 9)
    assert (answer.status, len(answer.prompts), answer.text) == (status, count, text)
    assert (answer.reason is not None) is (status == "malformed")


@pytest.mark.parametrize("text", ["[1,2,3,4]", "[1,2,3,4]; [5,6", "No object found."])
def test_a_cut_off_answer_is_malformed_even_if_it_parses(text):
    cut_off, complete = Reply(text, finished=False), Reply("[1,2,3,4]")
    answer, other = PPG.ask(ScriptedEngine([cut_off, complete]), [Question(IMAGE, "it", SIZE_WH)] * 2, 40)
    assert (answer.status, answer.prompts, answer.text) == ("malformed", (), text)
    assert answer.reason == "cut off at max_new_tokens=40"
    assert other.status == "ok"


def test_each_answer_is_parsed_at_the_size_of_its_image():
    engine = ScriptedEngine(["[000,000,499,499]"] * 2)
    wide, high = PPG.ask(engine, [Question("a.jpg", "x", (1000, 100)), Question("b.jpg", "x", (10, 2000))], 9)
    assert np.allclose(wide.prompts[0].box, (0.5, 0.05, 499.5, 49.95))
    assert np.allclose(high.prompts[0].box, (0.005, 1, 4.995, 999))


def test_samples_of_two_images_are_refused():
    with pytest.raises(ValueError, match="one image"):
        PPG.training_conversations([sample("a", "left"), sample("b", "left", image=Path("other.jpg"))], TARGETS)


def test_reading_order_is_left_to_right_then_down():
    boxes = [Box(5, 0, 6, 1), Box(1, 9, 2, 10), Box(1, 3, 2, 4)]
    prompts = [SamPrompt(box) for box in boxes]
    assert reading_order(prompts) == [prompts[2], prompts[1], prompts[0]]
    with pytest.raises(ValueError, match="points only"):
        reading_order([SamPrompt(None, (Point(1, 1, 1),))])


def test_settings_build_an_equal_method():
    assert method_from_settings(PPG.settings()) == PPG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pgp"}, "'pgp' is unknown; the methods are: pix2emb, ppg, pqpp"),
        ({"name": "both"}, "^method both was removed, because .*; use method: ppg$"),
        ({}, "None is unknown"),
        ({**PPG.settings(), "postives": 3}, "method ppg: unknown setting 'postives'"),
        ({**PPG.settings(), "positives": -1}, "positives and negatives must be 0 or more; got -1 and 1"),
        ({**PPG.settings(), "phrases": 0}, "phrases=0"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        method_from_settings(settings)


def test_isolated_phrases_are_branches_that_may_be_about_the_same_objects():
    samples = [sample("a", "left"), sample("b", "left"), sample("c", "right", "left"), sample("d", "right")]
    turns = replace(PPG, phrases=3).training_conversations(samples, TARGETS)
    assert [len(each.turns) for each in turns] == [6, 2] and all(each.branch_starts == (0,) for each in turns)
    isolated = replace(PPG, phrases=3, packing="isolated").training_conversations(samples, TARGETS)
    assert [len(each.turns) for each in isolated] == [6, 2]
    branches = [branch for each in isolated for branch in each.branches]
    # What is trained is what is asked: one phrase at a time.
    asked = replace(PPG, phrases=1).training_conversations(samples, TARGETS)
    assert sorted(map(texts, branches)) == sorted(map(texts, asked))


def test_packing_is_a_setting_that_is_recorded_where_it_is_isolated():
    assert "packing" not in PPG.settings()
    assert "packing" not in replace(PPG, packing="isolated", phrases=1).settings()
    isolated = replace(PPG, packing="isolated", phrases=2)
    assert method_from_settings(isolated.settings()) == isolated
    with pytest.raises(RecipeError, match="packing must be turns or isolated; got 'rows'"):
        method_from_settings({**PPG.settings(), "packing": "rows"})


@pytest.mark.parametrize("coordinates", list(dict.fromkeys(family.coordinates for family in FAMILIES.values())))
def test_a_box_loss_adds_locations_where_the_boxes_begin_and_changes_no_text(coordinates):
    plain = replace(PPG, coordinates=coordinates)
    located = replace(plain, box_loss=0.5)
    samples = [sample("both", "right", "left"), sample("a cloud")]
    (before,), (after,) = (method.training_conversations(samples, TARGETS) for method in (plain, located))
    assert texts(after) == texts(before) and not any(turn.locations for turn in before.turns)
    assert [len(turn.locations) for turn in after.turns] == [0, 2, 0, 0]
    answer, opening = after.turns[1], plain.grammar.coordinates.box[0]
    assert [place.box for place in answer.locations] == [Box(0.1, 0.2, 0.3, 0.6), Box(0.6, 0.2, 0.8, 0.6)]
    first = answer.text.index(opening)
    assert [place.start for place in answer.locations] == [first, answer.text.index(opening, answer.text.index(";"))]
    assert method_from_settings(located.settings()) == located and "box_loss" not in plain.settings()


def test_a_box_loss_of_more_objects_than_an_answer_is_parsed_to_has_all_their_locations():
    boxes = tuple(MaskObject(str(number), None, Box(number % 90, 5, number % 90 + 5, 9)) for number in range(1001))
    crowd = Sample("own/crowd", IMAGE, SIZE_WH, "the crowd", boxes)
    (conversation,) = replace(PPG, box_loss=0.5).training_conversations([crowd], {})
    assert len(conversation.turns[-1].locations) == 1001
