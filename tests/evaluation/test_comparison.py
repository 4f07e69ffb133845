"""The phrases for which points decide, and drawings that compare answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.comparison import choose_decided_by_points, draw_comparison, objects_sharing_boxes
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.viz.drawing import PALETTE, POSITIVE_COLOR, panels
from tests.data.tiny_datasets import write_image

SIZE_WH = (200, 100)


def mask(x1: int, x2: int) -> np.ndarray:
    pixels = np.zeros(SIZE_WH[::-1], dtype=bool)
    pixels[10:50, x1:x2] = True
    return pixels


def item(name: str, x1: int, x2: int) -> MaskObject:
    return MaskObject(name, encode(mask(x1, x2)), Box(x1, 10, x2, 50))


def sample(name: str, *objects: MaskObject, image: str = "a.png") -> Sample:
    return Sample(name, Path(image), SIZE_WH, f"the {name}", objects)


def scores(**ious: float) -> dict[str, SentenceScore]:
    return {name: SentenceScore(0, 0, iou, targeted=True, answered=True) for name, iou in ious.items()}


LEFT, ON_LEFT, RIGHT = item("left", 10, 50), item("on left", 15, 50), item("right", 120, 160)


def test_objects_of_one_image_with_overlapping_boxes_share_a_box() -> None:
    samples = [sample("1", LEFT), sample("2", ON_LEFT, RIGHT), sample("3"), sample("4", item("x", 10, 50), image="b")]
    assert objects_sharing_boxes(samples) == {"left", "on left"}


def test_the_same_object_under_two_ids_does_not_share_its_box_with_itself() -> None:
    assert objects_sharing_boxes([sample("1", LEFT), sample("2", item("grefcoco/left", 10, 50))]) == set()


def test_half_a_box_is_not_shared() -> None:
    # 40 of 80 pixels in common.
    assert objects_sharing_boxes([sample("1", LEFT), sample("2", item("wide", 10, 90))]) == set()


def test_the_largest_differences_come_first_with_one_sample_per_image_whether_points_help_or_not() -> None:
    samples = [sample(f"{image}{name}", thing, image=image) for image in "abc" for name, thing in
               (("l", item(f"{image} left", 10, 50)), ("o", item(f"{image} on", 15, 50)))]  # fmt: skip
    box_alone = scores(al=0.5, ao=0.5, bl=0.9, bo=0.5, cl=0.5, co=0.5)
    with_points = scores(al=0.7, ao=0.8, bl=0.5, bo=0.6, cl=0.8, co=0.5)
    chosen = choose_decided_by_points(samples, with_points, box_alone, 9)
    assert [each.id for each in chosen] == ["bl", "ao", "cl"]
    assert choose_decided_by_points(samples, with_points, box_alone, 2) == chosen[:2]


def test_samples_without_difference_or_without_a_shared_box_are_not_chosen() -> None:
    samples = [sample("same", LEFT), sample("on", ON_LEFT, image="a.png"), sample("alone", RIGHT, image="b.png")]
    box_alone = scores(same=0.5, on=0.5, alone=0.1)
    assert choose_decided_by_points(samples, scores(same=0.5, on=0.5, alone=0.9), box_alone, 9) == []


def answer(*objects: PredictedObject) -> PredictionLine:
    return PredictionLine("left", "ok" if objects else "no_object", objects)


def test_a_drawing_has_a_panel_for_the_truth_and_for_each_answer(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", *SIZE_WH)
    prompt = SamPrompt(Box(10, 10, 50, 50), (Point(30.5, 30.5, 1),))
    found = answer(PredictedObject(encode(mask(10, 50)), prompt))
    score = scores(left=0.875)["left"]
    one = draw_comparison(sample("left", LEFT, image=str(image)), {"tuned": (found, score)})
    two = draw_comparison(
        sample("left", LEFT, image=str(image)), {"base": (answer(), score), "tuned": (found, score)}, "the left one"
    )
    assert (one.width, two.width) == (424, 632) and two.height > one.height
    pixels = np.asarray(two)
    # The outline of the object's mask in the panels of the truth and of the answer, and the dot in the answer's.
    outlined = (pixels == PALETTE[0]).all(axis=2).any(axis=0)
    dotted = (pixels == POSITIVE_COLOR).all(axis=2).any(axis=0)
    assert [bool(part.any()) for part in np.split(outlined[8:632], 3)] == [True, False, True]
    assert [bool(part.any()) for part in np.split(dotted[8:632], 3)] == [False, False, True]


def test_a_title_has_the_iou_or_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(
        "sam4mllm.evaluation.comparison.panels",
        lambda parts, caption: [titles.append(title) for _, title in parts] and panels(parts, caption),
    )
    image = write_image(tmp_path / "a.png", *SIZE_WH)
    found, score = answer(PredictedObject(encode(mask(10, 50)))), scores(left=0.875)["left"]
    draw_comparison(sample("left", LEFT, image=str(image)), {"base": (answer(), score), "tuned": (found, score)})
    assert titles == ["truth", "base: no object", "tuned: IoU 0.88"]


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        draw_comparison(sample("left", LEFT, image=str(tmp_path / "gone.png")), {})
