"""Region captions: one query for each object, whose phrases are the references."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.cider import cider_d
from sam4mllm.evaluation.tasks.published import is_published_region_caption
from sam4mllm.evaluation.tasks.region_caption import RegionCaption
from sam4mllm.geometry import Box

RING, STAR = (MaskObject(name, None, Box(index, 0, index + 4, 5)) for index, name in enumerate(("o/ring", "o/star")))


def sample(number: int, phrase: str, *objects: MaskObject) -> Sample:
    return Sample(f"mine/{number}", Path("a.png"), (40, 20), phrase, objects)


SAMPLES = [
    sample(1, "the red ring", RING),
    sample(2, "the green star", STAR),
    sample(3, "ring on the left", RING),
    sample(4, "both shapes", RING, STAR),
    sample(5, "the blue dog"),
]


def test_each_object_is_asked_for_once_by_its_region() -> None:
    first, second = RegionCaption(SAMPLES, "mine", "val").queries()
    assert (first.id, first.image, first.regions) == ("o/ring", Path("a.png"), (RING.box,))
    assert (second.id, second.regions) == ("o/star", (STAR.box,))
    assert first.phrase == second.phrase and "<region>" in first.phrase
    assert first.to_json()["regions_xyxy"] == [[0, 0, 4, 5]]


def test_captions_are_scored_against_all_phrases_of_the_object() -> None:
    lines = [{"id": "o/star", "answer": "the green star"}, {"id": "o/ring", "answer": "The red ring."}]
    scores = RegionCaption(SAMPLES, "mine", "val").score(lines)
    references = [["the red ring", "ring on the left"], ["the green star"]]
    expected = sum(cider_d(["The red ring.", "the green star"], references)) / 2
    assert scores.figures == pytest.approx({"cider_d": expected, "exact_match": 1.0})
    assert (scores.n, scores.missing, scores.errors) == (2, 0, 0)


def test_an_object_without_an_answer_counts_as_an_empty_caption() -> None:
    split = RegionCaption(SAMPLES, "mine", "val")
    answered = split.score([{"id": "o/star", "answer": "the green star"}, {"id": "o/ring", "answer": ""}])
    missing = split.score([{"id": "o/star", "answer": "the green star"}])
    failed = split.score([{"id": "o/star", "answer": "the green star"}, {"id": "o/ring", "status": "error"}])
    assert answered.figures == missing.figures == failed.figures
    assert answered.figures["exact_match"] == 0.5
    assert (answered.missing, missing.missing, failed.errors) == (0, 1, 1)


def test_a_split_without_phrases_about_one_object_is_refused() -> None:
    with pytest.raises(DataError, match="no phrase refers to a single object"):
        RegionCaption(SAMPLES[3:], "mine", "val")


@pytest.mark.parametrize(
    ("dataset", "split_by", "split", "objects", "images", "comparable"),
    [
        ("refcocog", "google", "val", 5000, 4650, True),
        ("refcocog", "umd", "val", 5000, 4650, False),
        ("refcocog", "google", "train", 5000, 4650, False),
        ("refcocog", "google", "val", 4999, 4650, False),
        ("refcoco", "google", "val", 5000, 4650, False),
    ],
)
def test_published_captions_are_of_one_split(
    dataset: str, split_by: str, split: str, objects: int, images: int, comparable: bool
) -> None:
    assert is_published_region_caption(dataset, split_by, split, objects, images) is comparable
