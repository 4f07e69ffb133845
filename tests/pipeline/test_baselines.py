"""Baselines from the boxes of a run's answers, with and without SAM; no model is asked again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictedObject, PredictionLine, Query, read_predictions
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, Point, SamPrompt, box_of_mask, mask_of_box
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.baselines import filled_boxes, predict_from_boxes
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.data.tiny_datasets import write_image
from tests.simulated import Killed

ANSWERS = {
    "left": "[100,100,399,899] +(200,200)(300,300) -(320,320)",
    "both": "[100,100,399,899] +(200,200)(300,300) -(320,320); [600,100,799,899] +(650,200)(700,300) -(750,750)",
    "dragon": "No object found.",
    "riddle": "who knows",
}


class Counting(BoxSegmenter):
    """Cuts the negative points out of the mask; counts the images that it embeds, and is killed at number `die_at`."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__(points_cut=True)
        self.embedded = 0
        self.die_at = die_at

    def embed(self, images):  # type: ignore[no-untyped-def]
        self.embedded += len(images)
        if self.die_at is not None and self.embedded >= self.die_at:
            raise Killed
        return super().embed(images)


def refuse(conversation: Conversation) -> str:
    raise AssertionError("the model was asked again")


def make_pipeline(segmenter: BoxSegmenter, *, asked: bool = False) -> Pipeline:
    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    return Pipeline(method, ScriptedEngine(ANSWERS if asked else refuse), segmenter, image_batch=2)


@pytest.fixture
def queries(tmp_path: Path) -> list[Query]:
    return [
        Query(f"{image}/{phrase}", write_image(tmp_path / f"{image}.png", 40, 30), f"the {phrase}")
        for image in range(70)
        for phrase in (ANSWERS if image == 0 else ("left",))
    ]


@pytest.fixture
def answers(queries: list[Query], tmp_path: Path) -> list[PredictionLine]:
    return list(
        read_predictions(predict(make_pipeline(Counting(), asked=True), queries, tmp_path / "ours").predictions)
    )


def pixels(line: PredictionLine) -> list[int]:
    return [int(decode(item.segmentation).sum()) for item in line.objects]


def test_sam_is_given_the_box_alone_and_no_model_is_asked(
    queries: list[Query], answers: list[PredictionLine], tmp_path: Path
) -> None:
    segmenter, advanced = Counting(), list[int]()
    summary = predict_from_boxes(make_pipeline(segmenter), queries, answers, tmp_path / "box", advance=advanced.append)
    assert (summary.ok, summary.no_object, summary.malformed, summary.error) == (71, 1, 1, 0)
    alone = {line.id: line for line in read_predictions(summary.predictions)}
    assert sum(advanced) == len(queries) and segmenter.embedded == 70
    for line in answers:
        other = alone[line.id]
        assert (other.status, other.answer, other.phrase) == (line.status, line.answer, line.phrase)
        for item, own in zip(other.objects, line.objects, strict=True):
            assert own.prompt is not None and item.prompt == SamPrompt(own.prompt.box)
        assert all(here > there for here, there in zip(pixels(other), pixels(line), strict=True))


def test_a_killed_job_resumes_to_the_same_bytes(
    queries: list[Query], answers: list[PredictionLine], tmp_path: Path
) -> None:
    complete = predict_from_boxes(make_pipeline(Counting()), queries, answers, tmp_path / "complete").predictions
    with pytest.raises(Killed):
        predict_from_boxes(make_pipeline(Counting(die_at=66)), queries, answers, tmp_path / "killed")
    segmenter = Counting()
    again = predict_from_boxes(make_pipeline(segmenter), queries, answers, tmp_path / "killed").predictions
    assert again.read_bytes() == complete.read_bytes() and 0 < segmenter.embedded < 70


def test_predictions_from_other_answers_are_replaced(
    queries: list[Query], answers: list[PredictionLine], tmp_path: Path
) -> None:
    predict_from_boxes(make_pipeline(Counting()), queries, answers, tmp_path / "box")
    moved = PredictedObject(answers[0].objects[0].segmentation, SamPrompt(Box(0, 0, 40, 30)))
    other = [replace(answers[0], objects=(moved,)), *answers[1:]]
    summary = predict_from_boxes(make_pipeline(Counting()), queries, other, tmp_path / "box")
    assert pixels(next(read_predictions(summary.predictions))) == [40 * 30]


def test_an_error_stays_an_error_until_the_query_is_answered(
    queries: list[Query], answers: list[PredictionLine], tmp_path: Path
) -> None:
    lost = PredictionLine("5/left", "error", error="no such file")
    broken = [lost if line.id == lost.id else line for line in answers]
    summary = predict_from_boxes(make_pipeline(Counting()), queries, broken, tmp_path / "box")
    (line,) = [line for line in read_predictions(summary.predictions) if line.status == "error"]
    assert (
        line.id == "5/left"
        and line.error is not None
        and "the run has no answer to this query: no such file" in line.error
    )
    assert predict_from_boxes(make_pipeline(Counting()), queries, answers, tmp_path / "box").error == 0


def test_a_filled_box_is_the_mask(answers: list[PredictionLine]) -> None:
    filled = list(filled_boxes(answers))
    assert [line.status for line in filled] == [line.status for line in answers]
    for line in filled:
        for item in line.objects:
            assert item.prompt is not None and item.prompt.box is not None and item.prompt.points == ()
            assert np.array_equal(decode(item.segmentation), mask_of_box(item.prompt.box, (40, 30)))


def test_an_answer_without_box_is_refused(answers: list[PredictionLine], tmp_path: Path) -> None:
    prompt = SamPrompt(None, (Point(1, 1, 1),))
    lines = [PredictionLine("a", "ok", (PredictedObject(answers[0].objects[0].segmentation, prompt),))]
    with pytest.raises(DataError, match="prediction a: an object has no box"):
        list(filled_boxes(lines))
    with pytest.raises(DataError, match="prediction a: an object has no box"):
        predict_from_boxes(make_pipeline(Counting()), [], lines, tmp_path / "box")


@given(st.integers(0, 20), st.integers(0, 10), st.integers(0, 20), st.integers(0, 10))
def test_a_box_with_integer_edges_is_recovered_from_its_mask(x1: int, y1: int, x2: int, y2: int) -> None:
    box = Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    mask = mask_of_box(box, (20, 10))
    assert mask.shape == (10, 20) and mask.sum() == box.area
    assert box_of_mask(mask) == (box if box.area else None)


@pytest.mark.parametrize(
    ("box", "columns"), [((0.5, 0, 2.5, 1), [0, 1]), ((0.6, 0, 2.6, 1), [1, 2]), ((-3, -3, 1, 9), [0])]
)
def test_a_pixel_belongs_to_a_box_that_contains_its_center(box: tuple[float, ...], columns: list[int]) -> None:
    assert np.flatnonzero(mask_of_box(Box(*box), (4, 1))[0]).tolist() == columns
