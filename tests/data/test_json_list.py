"""A JSON list read part by part holds what it holds when it is read at once, wherever the parts end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam4mllm.data import json_list
from sam4mllm.data.json_list import read_json_list
from sam4mllm.errors import DataError

ENTRIES = [{"a": [1, {"b": '] } , \\ " é'}]}, {}, {"c": None, "d": 12.5e3}]


@pytest.mark.parametrize("part", [1, 2, 7, 64, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_equal_wherever_parts_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_list, "_PART_CHARACTERS", part)
    path = tmp_path / "list.json"
    path.write_text("\ufeff \n" + json.dumps(ENTRIES, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_json_list(path, "a list")) == ENTRIES


def test_entries_before_the_end_of_the_reading_need_not_be_followed_by_valid_ones(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"b"')
    assert next(iter(read_json_list(path, "a list"))) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "the file: expected '\\['; found '{'"),
        ("[", "entry 0: expected an object; found 'the end of the file'"),
        ('[{"a": 1}', "entry 1: expected ','; found 'the end of the file'"),
        ('[{"a": 1} {"a": 1}]', "entry 1: expected ','; found '{'"),
        ('[{"a": 1},]', "entry 1: expected an object; found ']'"),
        ('[{"a": 1}, 3]', "entry 1: expected an object; found '3'"),
        ('[{"a": 1}, {"b": }]', "entry 1: Expecting value"),
        ('[{"a": 1}, {"b": "', "entry 1: Unterminated string"),
        ('[{"a": 1, "a": 2}]', "the field 'a' occurs twice"),
        ('[{"a": 1}] x', "behind the list: found 'x'"),
        ("[" + '{"a":' * 10**5, "recursion"),
    ],
)
def test_other_text_is_an_error_that_names_the_entry(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"list.json: a list must be a JSON list of objects: .*{message}"):
        list(read_json_list(path, "a list"))


def test_other_files_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"list.json: no such file; a list was expected there"):
        list(read_json_list(tmp_path / "list.json", "a list"))
    (tmp_path / "list.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match=r"list.json: a list must be UTF-8"):
        list(read_json_list(tmp_path / "list.json", "a list"))
    (tmp_path / "list.json").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(DataError, match="zip"):
        list(read_json_list(tmp_path / "list.json", "a list"))
    (tmp_path / "list.json").write_text(" \n")
    with pytest.raises(DataError, match=r"list.json: is empty"):
        list(read_json_list(tmp_path / "list.json", "a list"))
    monkeypatch.setattr(json_list, "_PART_CHARACTERS", 8)
    monkeypatch.setattr(json_list, "_LONGEST_ENTRY_CHARACTERS", 16)
    (tmp_path / "list.json").write_text(json.dumps([{"a": "b" * 100}]))
    with pytest.raises(DataError, match="entry 0: Unterminated string"):
        list(read_json_list(tmp_path / "list.json", "a list"))
