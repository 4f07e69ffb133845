"""Referring expression comprehension: Acc@0.5 of the first box, and the protocols for several boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.tasks.rec import Rec, enclosing_box
from sam4mllm.geometry import Box

LEFT, RIGHT, BOTH = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 30.0, 10.0]


def sample(name: str, *boxes: list[float]) -> Sample:
    objects = tuple(MaskObject(f"{name}/{index}", None, Box(*box)) for index, box in enumerate(boxes))
    return Sample(name, Path("a.png"), (40, 20), f"phrase {name}", objects)


def line(name: str, *boxes: list[float], status: str = "ok") -> dict[str, Any]:
    return {"id": name, "status": status, "boxes_xyxy": list(boxes)}


@pytest.mark.parametrize(
    ("answer", "figures"),
    [
        (line("a", LEFT), (1, 1, 1)),
        # The first box counts, not the best one.
        (line("a", RIGHT, LEFT), (0, 0, 0)),
        # IoU 0.5 is not above 0.5.
        (line("a", [0, 0, 10, 5]), (0, 0, 0)),
        (line("a", [0, 0, 10, 5.1]), (1, 1, 1)),
        (line("a"), (0, 0, 0)),
        (line("a", LEFT, status="malformed"), (0, 0, 0)),
        ({"id": "a", "status": "no_object"}, (0, 0, 0)),
        # The lines of `predict` have the boxes in their objects; masks are not read.
        ({"id": "a", "status": "ok", "objects": [{"segmentation": None, "box_xyxy": LEFT}]}, (1, 1, 1)),
    ],
)
def test_the_first_box_of_an_answer_is_compared(answer: dict[str, Any], figures: tuple[int, int, int]) -> None:
    scores = Rec([sample("a", LEFT)], "mine", "val").score([answer])
    assert tuple(scores.figures.values()) == figures
    assert list(scores.figures) == ["acc_50", "acc_50_any", "acc_50_merged"]


@pytest.mark.parametrize(
    ("boxes", "any_box", "merged"),
    [([LEFT], 1, 0), ([RIGHT], 1, 0), ([BOTH], 0, 1), ([LEFT, RIGHT], 1, 1), ([[0, 10, 10, 20]], 0, 0)],
)
def test_several_annotated_boxes_are_compared_by_two_protocols(boxes: list[Any], any_box: int, merged: int) -> None:
    scores = Rec([sample("a", LEFT, RIGHT)], "mine", "val").score([line("a", *boxes)])
    assert scores.figures == {"acc_50": None, "acc_50_any": any_box, "acc_50_merged": merged}
    assert not scores.comparable


def test_shares_are_over_all_phrases_with_an_object_and_the_others_are_counted() -> None:
    samples = [sample("a", LEFT), sample("b", RIGHT), sample("c", LEFT), sample("d", LEFT), sample("e")]
    lines = [line("a", LEFT), line("d", LEFT, status="error"), line("c", status="malformed")]
    scores = Rec(samples, "mine", "val").score(lines)
    assert (scores.n, scores.missing, scores.malformed, scores.errors) == (5, 2, 1, 1)
    assert scores.figures == {"acc_50": None, "acc_50_any": 0.25, "acc_50_merged": 0.25}
    assert scores.to_json() == {
        "task": "rec",
        "dataset": "mine",
        "split": "val",
        **{"n": 5, "missing": 2, "malformed": 1, "errors": 1},
        **{"acc_50": None, "acc_50_any": 0.25, "acc_50_merged": 0.25},
    }


def test_queries_are_the_phrases() -> None:
    (query,) = Rec([sample("a", LEFT)], "mine", "val").queries()
    assert (query.id, query.image, query.phrase, query.regions) == ("a", Path("a.png"), "phrase a", ())


def test_a_split_without_objects_is_refused() -> None:
    with pytest.raises(DataError, match="mine val: no phrase with an object"):
        Rec([sample("a")], "mine", "val")


def test_the_enclosing_box_is_the_smallest_around_all() -> None:
    assert enclosing_box([Box(2, 3, 5, 6), Box(0, 4, 1, 9)]) == Box(0, 3, 5, 9)
