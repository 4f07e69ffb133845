"""PQPP: training conversations word for word, the questions at inference, and which points are kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box
from sam4mllm.methods.base import Question
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import GRID_XY, MAX_POINTS, PATTERN_XY, POINTS_MEAN, SINGLE_QUESTIONS, Pqpp
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.cached_rows import CachedRows
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuestion
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing import save_tiny_mllm

SIZE_WH = (100, 50)
IMAGE = Path("street.jpg")
SETTINGS = {
    "form": "list",
    "asked": "grid",
    "box_jitter": 0.1,
    "yes_above": 0.75,
    "no_above": 0.9,
    "grid": 1000,
    "phrases": 5,
}
LIST, SINGLE = Pqpp(**SETTINGS), Pqpp(**SETTINGS | {"form": "single"})
BOX_TEXT = "[200,200,600,800]"
BELOW_THRESHOLDS = YesNo(0.4, 0.3)


def disk(x: float, y: float, radius: float) -> MaskObject:
    rows, columns = np.mgrid[:50, :100] + 0.5
    mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    return MaskObject(f"disk {x}", encode(mask), Box(x - radius, y - radius, x + radius, y + radius))


def sample(phrase: str, *objects: MaskObject, number: int = 0) -> Sample:
    return Sample(f"refcoco/val/{number}/0", IMAGE, SIZE_WH, phrase, objects)


def texts(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.turns]


def points_in(text: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"\((\d+),(\d+)\)", text)]


def test_the_two_rounds_of_a_training_conversation_word_for_word() -> None:
    (conversation,) = LIST.training_conversations([sample("the ball", disk(30, 25, 10))], {})
    where, boxes, which, answers = texts(conversation)
    assert where == 'Where is "the ball"? Box each object.'
    assert boxes == "[200,300,400,700]"
    points = points_in(which)
    written = "".join(f"({x:03d},{y:03d})" for x, y in points)
    assert re.fullmatch(
        rf"Which points are on the object in \[[\d,]+\]\? {re.escape(written)} Answer yes or no for each\.", which
    )
    assert len(answers.split(", ")) == len(points) and set(answers.split(", ")) == {"yes", "no"}
    assert [turn.supervised for turn in conversation.turns] == [False, True] * 2


@pytest.mark.parametrize("method", [LIST, SINGLE])
def test_training_answers_are_right_at_the_written_coordinates(method: Pqpp) -> None:
    ball = disk(30, 25, 10)
    (conversation,) = method.training_conversations([sample("the ball", ball)], {})
    round_two = texts(conversation)[2:]
    asked = [point for question in round_two[::2] for point in points_in(question)]
    answers = [answer == "yes" for reply in round_two[1::2] for answer in reply.split(", ")]
    mask = ball.mask()
    assert answers == [bool(mask[int((y + 0.5) / 1000 * 50), int((x + 0.5) / 1000 * 100)]) for x, y in asked]
    if method is SINGLE:
        assert len(asked) == len(round_two) / 2 == SINGLE_QUESTIONS
        assert re.fullmatch(r"Is the point \(\d+,\d+\) on the object in \[[\d,]+\]\? Answer yes or no\.", round_two[0])


def test_about_ten_points_are_spread_over_a_jittered_box() -> None:
    ball = disk(50, 25, 20)
    previews = [LIST.preview_prompts(sample("the ball", ball, number=n), {})[0] for n in range(200)]
    counts = [len(prompt.points) for prompt in previews]
    assert (
        min(counts) >= 1 and max(counts) <= MAX_POINTS and abs(np.mean(counts) - POINTS_MEAN) < 1 and np.std(counts) > 2
    )
    offsets = np.array([np.subtract(prompt.box, ball.box) for prompt in previews])
    assert np.abs(offsets).max() <= 4.0001 and offsets.std() > 1.5
    for prompt in previews:
        xy = np.array([(point.x, point.y) for point in prompt.points])
        distances = np.linalg.norm((xy[:, None] - xy) / [prompt.box.width, prompt.box.height], axis=-1)
        assert distances[~np.eye(len(xy), dtype=bool)].min(initial=1) > 0.09
        assert all(prompt.box.x1 - 0.1 <= x <= prompt.box.x2 + 0.1 for x, _ in xy)


def test_no_training_point_is_on_ignored_pixels() -> None:
    ignored = np.zeros((50, 100), dtype=bool)
    ignored[:, 25:] = True
    complete = sample("the ball", disk(30, 25, 10))
    (kept,), (every,) = (
        LIST.preview_prompts(each, {}) for each in (replace(complete, ignore=encode(ignored)), complete)
    )
    assert kept.points == tuple(point for point in every.points if point.x < 25)
    assert 0 < len(kept.points) < len(every.points)


def test_sampled_points_depend_on_phrase_and_object_alone() -> None:
    ball, moon = disk(30, 25, 10), disk(70, 25, 12)
    (alone,) = LIST.training_conversations([sample("the ball", ball, number=1)], {})
    (together,) = LIST.training_conversations(
        [sample("the moon", moon, number=2), sample("the ball", ball, number=1)], {}
    )
    assert texts(alone) == texts(together)[-len(alone.turns) :]
    (other,) = LIST.training_conversations([sample("the ball", ball, number=3)], {})
    assert texts(other)[:2] == texts(alone)[:2] and texts(other)[2] != texts(alone)[2]


def test_second_rounds_follow_the_boxes_in_reading_order_if_there_are_masks_and_points() -> None:
    ball, moon = disk(30, 25, 10), disk(70, 25, 12)
    boxed = MaskObject("boxed", None, Box(5, 5, 15, 15))
    (both,) = Pqpp(**SETTINGS | {"box_jitter": 0.0}).training_conversations([sample("the two", moon, ball)], {})
    boxes = texts(both)[1].split("; ")
    assert [box in question for box, question in zip(boxes, texts(both)[2::2], strict=True)] == [True, True]
    (without,) = LIST.training_conversations([sample("the frame", boxed)], {})
    assert texts(without)[1:] == ["[050,100,150,300]"]
    (no_object,) = LIST.training_conversations([sample("a cloud")], {})
    assert texts(no_object)[1:] == ["No object found."]


def scripted(answer: str, probabilities=None) -> ScriptedEngine:
    return ScriptedEngine({"Where is": answer}, probabilities)


def ask(method, engine, *phrases: str):
    return method.ask(engine, [Question(IMAGE, phrase, SIZE_WH) for phrase in phrases], 99)


def test_points_above_a_threshold_are_kept_and_others_dropped() -> None:
    probabilities = [YesNo(0.76, 0.1), YesNo(0.74, 0.2), YesNo(0.05, 0.91), YesNo(0.1, 0.89), *[BELOW_THRESHOLDS] * 21]
    engine = scripted(BOX_TEXT, lambda history, question: [probabilities.pop(0) for _ in range(question.count)])
    (answer,) = ask(LIST, engine, "the ball")
    (prompt,) = answer.prompts
    assert [point.label for point in prompt.points] == [POSITIVE, NEGATIVE]
    assert answer.confidence[0].points == pytest.approx((0.76 + 0.91) / 2)
    box = prompt.box
    expected_xy = [(box.x1 + x * box.width, box.y1 + y * box.height) for x, y in (GRID_XY[0], GRID_XY[2])]
    assert np.allclose([point[:2] for point in prompt.points], expected_xy, atol=0.06)


def test_round_two_follows_round_one_of_training_and_asks_all_points_of_the_grid() -> None:
    engine = scripted(f" {BOX_TEXT} ", lambda history, question: [BELOW_THRESHOLDS] * question.count)
    (answer,) = ask(LIST, engine, "the ball")
    (query,) = engine.queries
    assert texts(query.history) == ['Where is "the ball"? Box each object.', BOX_TEXT]
    assert [question.count for question in query.questions] == [12, 13]
    assert all(BOX_TEXT in question.text for question in query.questions)
    assert len({point for question in query.questions for point in points_in(question.text)}) == 25
    assert answer.prompts[0].points == () and answer.confidence[0].points is None and answer.status == "ok"
    engine = scripted(BOX_TEXT, lambda history, question: [YesNo(1, 0)] * question.count)
    (answer,) = ask(Pqpp(**SETTINGS | {"form": "single", "asked": "pattern"}), engine, "the ball")
    assert [question.count for question in engine.queries[0].questions] == [1] * 15
    assert len(answer.prompts[0].points) == 15


@pytest.mark.parametrize("pattern_xy", [GRID_XY, PATTERN_XY])
def test_the_points_of_a_pattern_are_inside_the_box_and_evenly_spread(pattern_xy) -> None:
    xy = np.array(pattern_xy)
    assert len(set(pattern_xy)) == len(pattern_xy) and (xy > 0).all() and (xy < 1).all()
    assert np.allclose(xy.mean(axis=0), 0.5, atol=0.02)


def test_answers_without_boxes_have_no_second_round() -> None:
    script = {"cloud": "No object found.", "mess": "[1,2", "ball": f"{BOX_TEXT}; [700,200,900,800]"}

    def probabilities(history: Conversation, question: YesNoQuestion) -> list[YesNo]:
        return [YesNo(0.0, 1.0)] * question.count

    engine = ScriptedEngine(script, probabilities)
    no_object, malformed, two = ask(LIST, engine, "a cloud", "a mess", "the balls")
    assert (no_object.status, no_object.prompts) == ("no_object", ())
    assert malformed.status == "malformed" and malformed.reason
    assert [len(prompt.negatives) for prompt in two.prompts] == [25, 25]
    assert [len(query.questions) for query in engine.queries] == [0, 0, 4]


def test_an_engine_without_probabilities_is_refused_before_anything_is_asked() -> None:
    class NonScoring:
        def generate(self, conversations, max_new_tokens):
            raise AssertionError("asked")

    with pytest.raises(
        ModelError, match="the method pqpp needs the probabilities of yes and no, which NonScoring does not return"
    ):
        Pipeline(LIST, NonScoring(), BoxSegmenter())
    Pipeline(Ppg(2, 1, 1000, 5), NonScoring(), BoxSegmenter())


@pytest.mark.parametrize("method", [replace(each, yes_above=0.0, no_above=0.0) for each in (LIST, SINGLE)])
def test_a_real_model_scores_the_points_of_a_scripted_box(method, tmp_path, monkeypatch) -> None:
    """Round two by a model with an adapter: the more probable label is kept, and the confidence is its probability."""
    save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    mllm = attach_lora(load_mllm(str(tmp_path / "base")), {"r": 2}, 0)

    class FixedReplies(TransformersEngine):
        def generate(self, conversations, max_new_tokens):
            super().generate(conversations, 1)
            return [Reply(BOX_TEXT) for _ in conversations]

    pipe = Pipeline(method, FixedReplies(mllm, 4), BoxSegmenter())
    image = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    compute, computed = CachedRows.compute, []
    monkeypatch.setattr(CachedRows, "compute", lambda *given: computed.append(given) or compute(*given))
    (result,) = pipe([(image, "the ball")])
    assert len(computed) == 1, "round two computes the image again"
    (prompt,), (confidence,) = result.prompts, result.confidence
    assert result.status == "ok" and confidence.iou is not None
    assert len(prompt.points) == 25
    assert confidence.points is not None and 0 < confidence.points < 1


def test_settings_build_an_equal_method() -> None:
    for method in (LIST, SINGLE):
        assert method_from_settings(method.settings()) == method


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "rows"}, "packing must be turns or isolated; got 'rows'"),
        ({"form": "row"}, "form must be list or single"),
        ({"asked": "disk"}, "asked grid or pattern"),
        ({"box_jitter": 0.5}, "box_jitter must be from 0"),
        ({"yes_above": 1.5}, "yes_above and no_above"),
        ({"phrases": 0}, "grid and phrases must be 1 or more"),
    ],
)
def test_invalid_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        method_from_settings({"name": "pqpp", **SETTINGS, **change})


def test_isolated_phrases_are_branches_of_both_rounds() -> None:
    samples = [sample("the ball", disk(40, 50, 20)), sample("the moon", disk(90, 30, 15), number=1)]
    isolated = Pqpp(**SETTINGS | {"packing": "isolated"})
    (conversation,) = isolated.training_conversations(samples, {})
    assert list(conversation.branches) == Pqpp(**SETTINGS | {"phrases": 1}).training_conversations(samples, {})
    assert [len(branch.turns) for branch in conversation.branches] == [4, 4]
    assert method_from_settings(isolated.settings()) == isolated
    assert "packing" not in LIST.settings()
