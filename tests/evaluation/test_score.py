"""Scores of predictions: the metrics of each protocol by hand, ids, masks and counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import (
    PredictedObject,
    PredictionLine,
    Status,
    prediction_from_json,
)
from sam4mllm.data.registry import DATASETS
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.evaluation.protocols import PROTOCOLS
from sam4mllm.evaluation.published import _SIZES
from sam4mllm.evaluation.score import score, score_predictions, score_sentences
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances, write_refs

HEIGHT, WIDTH = 2, 10


def _columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, first:last] = True
    return mask


def _sample(name: str, *spans: tuple[int, int], ignore: tuple[int, int] | None = None) -> Sample:
    objects = tuple(
        MaskObject(f"{name}/{index}", encode(_columns(*span)), Box(span[0], 0, span[1], HEIGHT))
        for index, span in enumerate(spans)
    )
    ignored = None if ignore is None else encode(_columns(*ignore))
    return Sample(name, Path(f"{name}.jpg"), (WIDTH, HEIGHT), "a phrase", objects, ignored)


def _line(name: str, *spans: tuple[int, int], status: Status = "ok", boxes: bool = True) -> PredictionLine:
    objects = []
    for first, last in spans:
        prompt = SamPrompt(Box(first, 0, last, HEIGHT)) if boxes else None
        objects.append(PredictedObject(encode(_columns(first, last)), prompt, 0.9))
    return PredictionLine(name, status, tuple(objects))


def test_refcoco_by_hand() -> None:
    samples = [_sample(name, (0, 4)) for name in "abcdefg"]
    predictions = [
        _line("g", (0, 3), (3, 4)),  # I 8, U 8 by the union of two objects; the first box has IoU 0.75
        _line("a", (0, 4)),  # I 8, U 8
        _line("b", (0, 2)),  # I 4, U 8; its box has IoU exactly 0.5, which is not above it
        _line("c", status="no_object"),  # I 0, U 8
        # Its objects are ignored: I 0, U 8.
        replace(_line("d", (0, 4), status="malformed"), error="cut off at max_new_tokens=9"),
        _line("e", status="error"),  # I 0, U 8
        # f has no line: I 0, U 8
    ]
    scores = score_predictions(predictions, samples, dataset="refcoco", split="val")
    assert scores.to_json() == {
        "dataset": "refcoco",
        "split": "val",
        "protocol": "refcoco",
        "n": 7,
        "missing": 1,
        "malformed": 1,
        "ciou": pytest.approx(20 / 56),
        "giou": pytest.approx((1 + 0.5 + 1) / 7),
        "n_acc": None,
        "t_acc": None,
        "pr_70": pytest.approx(2 / 7),
        "pr_80": pytest.approx(2 / 7),
        "pr_90": pytest.approx(2 / 7),
        "acc_50": pytest.approx(2 / 7),
        # Boxes without points.
        "points_on": None,
        "points_on_chance": None,
        "points_off": None,
        "points_off_chance": None,
        "positive_points": 0,
        "negative_points": 0,
        "points_kept": 0.0,
        "cut_off": 1,
    }
    assert json.loads(json.dumps(scores.to_json())) == scores.to_json()
    assert scores.errors == 1


def test_points_of_correct_boxes_are_scored_beside_chance() -> None:
    def line(name: str, box: Box | None, *points: Point, status: Status = "ok") -> PredictionLine:
        prompt = None if box is None else SamPrompt(box, points)
        return PredictionLine(name, status, (PredictedObject(encode(_columns(0, 4)), prompt),))

    on, beside, off = Point(1.5, 0.5, POSITIVE), Point(4.5, 0.5, POSITIVE), Point(4.5, 1.5, NEGATIVE)
    predictions = [
        line("a", Box(0, 0, 5.2, 2), on, beside, off),  # 4 of 5 columns are on the object; widened to 5.72, 4 of 6
        line("b", Box(0, 0, 4, 2), on),  # all columns
        line("c", Box(5, 0, 9, 2), beside, off),  # the wrong box
        line("d", None),
        line("e", Box(0, 0, 4, 2), beside, status="malformed"),
    ]
    samples = [_sample(name, (0, 4)) for name in "abcdef"]
    scores = score_predictions(predictions, samples, dataset="refcoco", split="val")
    assert (scores.points_on, scores.points_on_chance) == (pytest.approx(2 / 3), pytest.approx((2 * 0.8 + 1) / 3))
    assert (scores.points_off, scores.points_off_chance) == (1.0, pytest.approx(1 / 3))
    assert (scores.positive_points, scores.negative_points, scores.points_kept) == (3, 1, 2.0)
    # Lines read from their JSON have the same figures.
    again = [prediction_from_json(json.loads(dump_line(each))) for each in predictions]
    assert score_predictions(again, samples, dataset="refcoco", split="val") == scores


def test_predictions_without_prompts_have_no_figures_of_points() -> None:
    line = prediction_from_json({"id": "a", "status": "ok", "objects": [{"segmentation": encode(_columns(0, 4))}]})
    scores = score_predictions([line], [_sample("a", (0, 4))], dataset="refcoco", split="val")
    assert (scores.ciou, scores.points_on, scores.points_off, scores.points_kept) == (1.0, None, None, None)


@pytest.mark.parametrize("order", [((0, 2), (4, 6)), ((4, 6), (0, 2))])
def test_acc_50_is_not_defined_for_phrases_of_several_objects(order: tuple[tuple[int, int], ...]) -> None:
    scores = score_predictions(
        [_line("cups", *order)], [_sample("cups", (0, 2), (4, 6))], dataset="refcoco", split="val"
    )
    assert (scores.ciou, scores.acc_50) == (1.0, None)


def test_grefcoco_by_hand() -> None:
    samples = [
        _sample("two", (0, 2), (4, 6)),
        _sample("one", (0, 4)),
        _sample("denied", (0, 4)),
        _sample("unanswered", (0, 4)),
        _sample("none", *()),
        _sample("invented", *()),
        _sample("none missing", *()),
    ]
    predictions = [
        _line("two", (0, 2), (4, 7)),  # I 8, U 10
        _line("one", (0, 4)),  # I 8, U 8
        _line("denied", (2, 6), status="no_object"),  # I 0, U 12, with the raw mask
        _line("none", status="no_object"),  # IoU 1, nothing to U
        _line("invented", (0, 3)),  # IoU 0, U 6
    ]
    scores = score_predictions(predictions, samples, dataset="grefcoco", split="val")
    assert (scores.n, scores.missing, scores.malformed) == (7, 2, 0)
    assert scores.ciou == pytest.approx((8 + 8) / (10 + 8 + 12 + 8 + 6))
    # "unanswered" has IoU 0, and "none missing" is an empty mask where none was meant.
    assert scores.giou == pytest.approx((0.8 + 1 + 0 + 0 + 1 + 0 + 1) / 7)
    assert scores.n_acc == pytest.approx(2 / 3)
    assert scores.t_acc == pytest.approx(2 / 4)
    # Pr@ is over the four targeted sentences alone; IoU 0.8 reaches 0.8.
    assert (scores.pr_70, scores.pr_80, scores.pr_90) == (2 / 4, 2 / 4, 1 / 4)
    assert scores.acc_50 is None


def test_reasonseg_by_hand() -> None:
    samples = [
        _sample("ignored", (0, 4), ignore=(4, 8)),
        _sample("plain", (0, 4)),
        _sample("empty", *()),
        _sample("invented", *()),
    ]
    predictions = [
        _line("ignored", (2, 6)),  # I 4, U 8
        _line("plain", (0, 4)),  # I 8, U 8
        _line("empty", status="no_object"),  # IoU 1
        _line("invented", (0, 1)),  # IoU 0, U 2
    ]
    scores = score_predictions(predictions, samples, dataset="reasonseg", split="val")
    assert scores.protocol == "reasonseg"
    assert scores.ciou == pytest.approx(12 / 18)
    assert scores.giou == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert (scores.n_acc, scores.t_acc, scores.acc_50) == (None, None, None)
    assert scores.pr_70 == pytest.approx(2 / 4)


def test_each_sentence_has_its_score_in_the_order_of_the_split() -> None:
    samples = [_sample(name, (0, 4)) for name in "abc"]
    lines = [_line("c", (0, 2)), _line("a", (0, 4))]
    scored = score_sentences(lines, samples, dataset="refcoco", split="val")
    assert {name: sentence.iou for name, sentence in scored.by_id.items()} == {"a": 1.0, "b": 0.0, "c": 0.5}
    assert list(scored.by_id) == ["a", "b", "c"]
    assert scored.scores == score_predictions(lines, samples, dataset="refcoco", split="val")


def test_overlapping_objects_are_counted_once() -> None:
    scores = score_predictions([_line("a", (0, 3), (1, 4))], [_sample("a", (0, 4))], dataset="refcoco", split="val")
    assert (scores.ciou, scores.giou) == (1.0, 1.0)


def test_acc_50_takes_the_first_box_alone() -> None:
    samples = [_sample("a", (0, 4)), _sample("b", (0, 4))]
    predictions = [_line("a", (0, 4), (6, 9)), _line("b", (6, 9), (0, 4))]
    assert score_predictions(predictions, samples, dataset="refcoco", split="val").acc_50 == 0.5


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ([_line("a", (0, 4), boxes=False), _line("b", (0, 4), boxes=False)], None),
        ([_line("a", (0, 4), boxes=False), _line("b", (0, 4))], 0.5),
        ([_line("a", status="no_object")], 0.0),
        ([], 0.0),
    ],
)
def test_acc_50_is_not_defined_for_a_program_without_boxes(
    predictions: list[PredictionLine], expected: float | None
) -> None:
    samples = [_sample("a", (0, 4)), _sample("b", (0, 4))]
    assert score_predictions(predictions, samples, dataset="refcoco", split="val").acc_50 == expected


def test_a_split_without_predictions_scores_0_and_counts_them_as_missing() -> None:
    scores = score_predictions([], [_sample("a", (0, 4))], dataset="refcoco", split="val")
    assert (scores.n, scores.missing, scores.ciou, scores.giou) == (1, 1, 0.0, 0.0)


def test_without_any_pixel_ciou_is_not_defined() -> None:
    scores = score_predictions([_line("a", status="no_object")], [_sample("a")], dataset="grefcoco", split="val")
    assert (scores.ciou, scores.giou, scores.n_acc, scores.t_acc, scores.pr_70) == (None, 1.0, 1.0, None, None)


def test_min_pixels_turns_small_masks_into_no_target() -> None:
    samples, predictions = [_sample("a"), _sample("b", (0, 4))], [_line("a", (0, 2)), _line("b", (0, 4))]
    assert score_predictions(predictions, samples, dataset="grefcoco", split="val").n_acc == 0.0
    assert score_predictions(predictions, samples, dataset="grefcoco", split="val", min_pixels=5).n_acc == 1.0
    assert score_predictions(predictions, samples, dataset="grefcoco", split="val", min_pixels=9).t_acc == 0.0


def test_the_order_of_the_lines_does_not_matter_and_each_is_read_once() -> None:
    samples = [_sample(str(index), (index % 5, 5 + index % 4)) for index in range(20)]
    predictions = [_line(str(index), (index % 3, 4 + index % 6)) for index in range(20)]

    def once() -> Iterator[PredictionLine]:
        yield from reversed(predictions)

    backwards = score_predictions(once(), samples, dataset="refcoco", split="val")
    assert backwards == score_predictions(predictions, samples, dataset="refcoco", split="val")


def test_unknown_and_repeated_ids_are_reported_together() -> None:
    predictions = [_line("a", (0, 4)), _line("a", (0, 4)), *(_line(f"x{index}", (0, 4)) for index in range(5))]
    with pytest.raises(
        PredictionsError,
        match=r"5 id\(s\) are not queries of refcoco val \(x0, x1, x2 and 2 more\); 1 id.* twice \(a\)",
    ):
        score_predictions(predictions, [_sample("a", (0, 4))], dataset="refcoco", split="val")


@pytest.mark.parametrize("status", ["ok", "malformed"])
def test_a_mask_of_another_size_is_refused(status: Status) -> None:
    line = PredictionLine("a", status, (PredictedObject(encode(np.ones((HEIGHT * 2, WIDTH), dtype=bool))),))
    with pytest.raises(PredictionsError, match=r"prediction a: a mask is \(4, 10\) \(H, W\), its image is \(2, 10\)"):
        score_predictions([line], [_sample("a", (0, 4))], dataset="refcoco", split="val")


def test_a_protocol_that_does_not_fit_the_samples_is_refused() -> None:
    with pytest.raises(DataError, match=r"refcoco is not defined for a phrase without target \(b\); use grefcoco"):
        score_predictions([], [_sample("a", (0, 4)), _sample("b")], dataset="grefcoco", split="val", protocol="refcoco")
    with pytest.raises(DataError, match="no samples"):
        score_predictions([], [], dataset="refcoco", split="val")


def test_every_data_set_that_is_read_can_be_scored() -> None:
    assert all(row.protocol in PROTOCOLS for row in DATASETS.values() if row.kind not in ("boxes", "chat"))


def test_a_file_and_json_objects_are_scored_on_a_named_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instances(tmp_path / "refcoco", [image_record(1)], [annotation(1, 1)])
    (tmp_path / "images/mscoco/images/train2014").mkdir(parents=True)
    write_refs(tmp_path / "refcoco", [ref(1, 1, 1, "val", "it"), ref(2, 1, 1, "val", "that")])
    rle = encode(np.ones((10, 20), dtype=bool))
    line = {"id": "refcoco/val/1/10", "status": "ok", "objects": [{"segmentation": rle}]}
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    data = {"dataset": "refcoco", "root": tmp_path, "split": "val"}
    scores = score(tmp_path / "p.jsonl", **data)
    assert scores == score([line], **data) == score([prediction_from_json(line)], **data)
    assert (scores.n, scores.missing, scores.comparable) == (2, 1, False), "the benchmark has 10834 sentences"
    monkeypatch.setitem(_SIZES, ("refcoco", "val"), (2, 1))
    assert score([line], **data).comparable
    assert not score([line], **data, protocol="reasonseg").comparable
    assert score([line], **data, limit=1).missing == 0
    with pytest.raises(DataError, match="root: is missing"):
        score([line], dataset="refcoco", split="val")
