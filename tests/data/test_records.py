"""Records: strict types, and errors that name the field, the value and the record."""

from __future__ import annotations

from typing import Any

import pytest

from sam4mllm.data.records import Record, Text, parse_record
from sam4mllm.errors import DataError


class Part(Record):
    score: float


class Whole(Record):
    number: int
    name: Text
    parts: list[Part]


GOOD: dict[str, Any] = {"number": 1, "name": "\u00e9", "parts": [{"score": 1}, {"score": 0.5}], "extra": None}


def test_integers_are_numbers_and_unknown_fields_are_ignored() -> None:
    record = parse_record(Whole, GOOD, "x.json, record 3")
    assert [part.score for part in record.parts] == [1.0, 0.5] and not hasattr(record, "extra")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"expected an object with number, name, parts; found \[\]"),
        ({"name": "a"}, "the field 'number' is missing; found 'name'"),
        ({}, "the field 'number' is missing; found no field"),
        (GOOD | {"number": True}, "the field 'number' must be an integer; found True"),
        (GOOD | {"number": 1.0}, "the field 'number' must be an integer; found 1.0"),
        (GOOD | {"number": "1"}, "the field 'number' must be an integer; found '1'"),
        (GOOD | {"name": "a\ud800b"}, "the field 'name' holds a lone surrogate, which UTF-8 cannot encode; found"),
        (GOOD | {"name": None}, "the field 'name' must be text; found None"),
        (GOOD | {"parts": {}}, "the field 'parts' must be a list; found {}"),
        (GOOD | {"parts": [{"score": 1}, 2]}, r"the field 'parts\[1\]' must be an object; found 2"),
        (GOOD | {"parts": [{"score": False}]}, r"the field 'parts\[0\].score' must be a number; found False"),
        (GOOD | {"parts": [{"score": 10**400}]}, r"the field 'parts\[0\].score' must be a number; found 1000"),
    ],
)
def test_the_first_problem_is_reported_with_its_field_and_record(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^x.json, record 3: {message}") as raised:
        parse_record(Whole, value, "x.json, record 3")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200
