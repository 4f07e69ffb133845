from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import (
    Confidence,
    PredictedObject,
    PredictionLine,
    Query,
    Status,
    prediction_from_json,
    queries_of,
    read_predictions,
)
from sam4mllm.data.query_files import read_queries
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.geometry import Box, Point, SamPrompt

RLE = encode(np.eye(4, 6, dtype=bool))
PROMPT = SamPrompt(Box(1, 2, 5, 4), (Point(2.5, 3.5, 1), Point(1.0, 2.0, 0)))
LINE = PredictionLine(
    id="refcoco/val/1/2",
    status="ok",
    objects=(PredictedObject(RLE, PROMPT, 0.75),),
    image=Path("a b.jpg"),
    phrase="der gr\u00fcne Ring",
    answer="[001,002,003,004]",
)


def test_a_prediction_line_has_the_documented_format() -> None:
    assert json.loads(dump_line(LINE)) == {
        "id": "refcoco/val/1/2",
        "image": "a b.jpg",
        "phrase": "der gr\u00fcne Ring",
        "status": "ok",
        "answer": "[001,002,003,004]",
        "objects": [
            {
                "box_xyxy": [1.0, 2.0, 5.0, 4.0],
                "points_xy": [[2.5, 3.5], [1.0, 2.0]],
                "point_labels": [1, 0],
                "segmentation": {"size": [4, 6], "counts": RLE["counts"]},
                "score": 0.75,
            }
        ],
        "error": None,
    }
    assert list(json.loads(dump_line(LINE))) == ["id", "image", "phrase", "status", "answer", "objects", "error"]


def test_predictions_come_back_as_written(tmp_path: Path) -> None:
    lines = [
        LINE,
        PredictionLine("b", "no_object", image=Path("b.jpg"), phrase="x", answer="No object found."),
        PredictionLine("c", "error", image=Path("c.jpg"), phrase="y", answer="", error="c.jpg: no such file"),
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(map(dump_line, lines)) + "\n", encoding="utf-8")
    assert list(read_predictions(path)) == lines


def test_id_status_and_masks_are_enough() -> None:
    line = prediction_from_json({"id": "a", "status": "ok", "objects": [{"segmentation": RLE}], "model": "another"})
    assert line == PredictionLine("a", "ok", (PredictedObject(RLE),))
    assert prediction_from_json({"id": "a", "status": "no_object"}) == PredictionLine("a", "no_object")


@pytest.mark.parametrize("confidence", [0.93, "high", [0.9, 0.1], None])
def test_a_confidence_in_the_format_of_another_program_is_ignored(confidence: object) -> None:
    record = {"id": "a", "status": "ok", "objects": [{"segmentation": RLE, "confidence": confidence}]}
    assert prediction_from_json({**record, "confidence": confidence}) == PredictionLine(
        "a", "ok", (PredictedObject(RLE),)
    )


COORDINATES = st.floats(-1e6, 1e6)
PROMPTS = st.builds(
    lambda x2, y2, points: SamPrompt(Box(0.0, 0.0, x2, y2), tuple(points)),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.lists(st.builds(Point, COORDINATES, COORDINATES, st.sampled_from([0, 1])), max_size=4),
)
STATUSES: list[Status] = ["ok", "no_object", "malformed", "error"]


@given(st.text(), st.sampled_from(STATUSES), PROMPTS, st.text(), st.floats(0, 1))
def test_any_prediction_survives_its_line(
    text: str, status: Status, prompt: SamPrompt, answer: str, score: float
) -> None:
    written = PredictionLine(text, status, (PredictedObject(RLE, prompt, score),), Path("p"), text, answer, text)
    line = dump_line(written)
    assert line.count("\n") == 1
    assert prediction_from_json(json.loads(line)) == written


@pytest.mark.parametrize("box_alone", [True, False, None])
def test_the_former_field_box_alone_is_ignored(box_alone: bool | None) -> None:
    record = json.loads(dump_line(LINE))
    record["objects"][0]["box_alone"] = box_alone
    assert prediction_from_json(record) == LINE


def test_confidence_is_written_by_its_name_and_read_by_its_former_name_too() -> None:
    confidence = Confidence(text=-0.25, points=0.5)
    written = PredictionLine("a", "ok", (PredictedObject(RLE, confidence=confidence),), answer="")
    written = replace(written, confidence=Confidence(iou=0.75))
    record = json.loads(dump_line(written))
    assert record["confidence"] == {"text": None, "points": None, "iou": 0.75} and "evidence" not in record
    assert prediction_from_json(record) == written
    former = dict(record, evidence=record.pop("confidence"))
    former["objects"] = [dict(item, evidence=item.pop("confidence")) for item in record["objects"]]
    assert prediction_from_json(former) == written


def _object(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "status": "ok", "objects": [{"segmentation": RLE, **changes}]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected an object with id, status; found"),
        ({"status": "ok"}, "the field 'id' is missing"),
        ({"id": 1, "status": "ok"}, "the field 'id' must be text"),
        ({"id": "a", "status": "fine", "objects": []}, "the status is one of ok, no_object, malformed, error"),
        ({"id": "a", "status": "ok"}, "the field 'objects' is missing"),
        ({"id": "a", "status": "ok", "objects": [1]}, r"the field 'objects\[0\]' must be an object; found 1"),
        (_object(segmentation=None), "an RLE is"),
        (_object(segmentation={"size": [4, 6], "counts": "zz"}), "counts"),
        (_object(box_xyxy=[1, 2, 3]), "box_xyxy is"),
        (_object(box_xyxy=[3, 2, 1, 4]), "a box is"),
        (_object(box_xyxy=[1, 2, 3, "4"]), r"the field 'objects\[0\].box_xyxy\[3\]' must be a number; found '4'"),
        (_object(points_xy=[[1, 2]], point_labels=[]), "each with its label"),
        (_object(points_xy=[[1]], point_labels=[1]), "points_xy is"),
        (_object(points_xy=[[1, 2]], point_labels=[3]), "a point label is 1"),
        (_object(score="high"), r"the field 'objects\[0\].score' must be a number; found 'high'"),
        (_object(score=float("nan")), r"the field 'objects\[0\].score' must be a finite number; found nan"),
        (
            _object(confidence={"iou": float("inf")}),
            r"confidence.iou' must be a finite number; found inf",
        ),
        (
            {"id": "a", "status": "ok", "objects": [], "score": float("nan")},
            "the field 'score' must be a finite number",
        ),
    ],
)
def test_every_bad_line_is_reported_with_its_number(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{dump_line(LINE)}{json.dumps(value)}\n{{\n{dump_line(LINE)}")
    lines = read_predictions(path)
    with pytest.raises(PredictionsError, match=f"2 bad line.*line 2: .*{message}.*line 3: not JSON: ") as error:
        list(lines)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="cannot be read: No such file"):
        list(read_predictions(tmp_path / "predictions.jsonl"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_queries(tmp_path / "queries.jsonl")


def test_queries_come_back_as_written(tmp_path: Path) -> None:
    queries = [Query("a", Path("p/a.jpg"), "the man"), Query("b", Path("b.jpg"), " x")]
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(map(dump_line, queries)), encoding="utf-8")
    assert read_queries(path) == queries


def test_queries_about_one_image_share_its_path(tmp_path: Path) -> None:
    """A path takes more memory than the rest of a query."""
    path = tmp_path / "q.jsonl"
    lines = [{"id": str(number), "image": f"{number % 2}.png", "phrase": "a"} for number in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third, fourth = (query.image for query in read_queries(path))
    assert first is third and second is fourth and first != second


def test_all_bad_queries_are_reported_at_once(tmp_path: Path) -> None:
    good = dump_line(Query("a", Path("a.jpg"), "x"))
    path = tmp_path / "queries.jsonl"
    path.write_bytes(good.encode() + b'{"id": "b"}\n\xff\n' + good.encode() + b"null\n" * 12)
    with pytest.raises(DataError, match=r"15 bad lines: line 2: .*'image' is missing.*line 3: .*; and 5 more"):
        read_queries(path)


def test_a_duplicate_query_id_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(dump_line(Query("a", Path("a.jpg"), "x")) * 2)
    with pytest.raises(DataError, match="line 2: the id 'a' is also in line 1"):
        read_queries(path)


def test_a_file_without_queries_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataError, match="no query in it"):
        read_queries(path)


def test_queries_of_samples_keep_their_order() -> None:
    samples = [Sample(f"s/{index}", Path(f"{index}.jpg"), (4, 4), f"phrase {index}", ()) for index in (2, 1)]
    assert queries_of(samples) == [
        Query("s/2", Path("2.jpg"), "phrase 2"),
        Query("s/1", Path("1.jpg"), "phrase 1"),
    ]
