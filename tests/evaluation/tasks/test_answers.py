"""Lines of answers: what is read from files of any program, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.errors import DataError, PredictionsError
from sam4mllm.evaluation.tasks.answers import (
    AnswerLine,
    MarkedPhrase,
    TaskQuery,
    answer_from_json,
    answers_by_id,
    read_answers,
)
from sam4mllm.geometry import Box

BOX = Box(0.0, 1.0, 2.0, 3.5)

LINES = [
    AnswerLine("a", "ok", "[0,1,2,3]", boxes=(BOX,), image=Path("a.png"), question="the ring"),
    AnswerLine("a", "ok", "A ring", phrases=(MarkedPhrase("A ring", (BOX, BOX)),), finished=False),
    AnswerLine("a", "error", error="no such file"),
    AnswerLine("a", answer=""),
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_written_is_read_again(line: AnswerLine) -> None:
    assert answer_from_json(json.loads(json.dumps(line.to_json()))) == line


def test_an_id_and_the_scored_field_suffice() -> None:
    assert answer_from_json({"id": "a", "answer": "yes", "model": "other"}) == AnswerLine("a", answer="yes")
    assert answer_from_json({"id": "a", "boxes_xyxy": []}).boxes == ()
    objects = [{"box_xyxy": None, "segmentation": 3}, {"box_xyxy": list(BOX)}]
    assert answer_from_json({"id": "a", "objects": objects}).boxes == (BOX,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected an object with id"),
        ({"answer": "yes"}, "the field 'id' is missing"),
        ({"id": 3}, "'id' must be text; found 3"),
        ({"id": "a", "status": "done"}, "the status is one of ok, no_object, malformed, error; found 'done'"),
        ({"id": "a", "boxes_xyxy": [[1, 2, 3]]}, "boxes_xyxy is .*; found .1.0, 2.0, 3.0"),
        ({"id": "a", "boxes_xyxy": [[5, 0, 3, 1]]}, "with x1 <= x2 and y1 <= y2; found .5.0, 0.0, 3.0, 1.0"),
        ({"id": "a", "boxes_xyxy": [["0", 0, 3, 1]]}, r"'boxes_xyxy\[0\]\[0\]' must be a number"),
        ({"id": "a", "boxes_xyxy": [[float("nan"), 0, 3, 1]]}, "must be a finite number"),
        ({"id": "a", "phrases": [{"phrase": "ring"}]}, r"'phrases\[0\].boxes_xyxy' is missing"),
    ],
)
def test_bad_lines_are_refused_with_what_was_found(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        answer_from_json(value)


def test_all_bad_lines_of_a_file_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": "a"}\n\n{"id": 3}\n{"id": "b", "answer": "no"}\nno\n')
    with pytest.raises(PredictionsError, match=r"2 bad lines.*line 3.*line 5"):
        list(read_answers(file))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "c", "answer": ""}], r"1 id\(s\) are not queries of mine val \(c\)"),
        ([{"id": "a", "answer": ""}] * 2, r"1 id\(s\) occur twice \(a\)"),
        ([{"id": "a"}], "prediction a: the field 'answer' is missing, which this task scores"),
    ],
)
def test_answers_belong_to_the_queries_and_have_the_scored_field(lines: list[Any], message: str) -> None:
    with pytest.raises(PredictionsError, match=message):
        answers_by_id(lines, ["a", "b"], "mine val", "answer")


def test_answers_are_found_by_id_and_errors_need_no_field() -> None:
    lines = [{"id": "b", "status": "error"}, AnswerLine("a", answer="yes")]
    assert answers_by_id(lines, ["a", "b", "c"], "mine val", "answer") == {
        "a": AnswerLine("a", answer="yes"),
        "b": AnswerLine("b", "error"),
    }


def test_a_query_that_fails_has_a_line_with_the_reason() -> None:
    query = TaskQuery("a", Path("a.png"), "What is at <region>?", (BOX,))
    assert query.failed("cannot be read: \ud800") == AnswerLine(
        "a", "error", image=Path("a.png"), question="What is at <region>?", error="cannot be read: ?"
    )
    assert query.to_json()["regions_xyxy"] == [[0.0, 1.0, 2.0, 3.5]]
    assert "regions_xyxy" not in TaskQuery("a", Path("a.png"), "the ring").to_json()
