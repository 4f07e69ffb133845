"""Reading a JSON list of objects part by part, for files that would take several times their size if read at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sam4mllm.data.file_kinds import HEAD_BYTES, wrong_kind
from sam4mllm.data.records import unique_keys
from sam4mllm.errors import DataError
from sam4mllm.utils.paths import with_start

_PART_CHARACTERS = 2**22
_LONGEST_ENTRY_CHARACTERS = 2**26
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def read_json_list(path: Path, what: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of the JSON list that is the content of a file in UTF-8.

    Raises:
        DataError: No such file; not a list, an entry that is not an object or of more than 64 Mi characters, or not
            JSON; the message names the entry, counted from 0.
    """
    if not path.is_file():
        raise DataError(f"{with_start(path)}: no such file; {what} was expected there")
    with path.open("rb") as head:
        if kind := wrong_kind(head.read(HEAD_BYTES)):
            raise DataError(f"{path}: {kind} ({what}, in JSON, was expected)")
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from _ListReader(file).entries()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {what} must be UTF-8: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {what} must be a JSON list of objects: {error}", "json") from error


class _ListReader:
    """A part of a file's text, and the position in it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._position = 0

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries.

        Raises:
            ValueError: Not a list of objects.
        """
        self._expect("[", "the file")
        index = 0
        while self._next() != "]":
            where = f"entry {index}"
            if index:
                self._expect(",", where)
            if (found := self._next()) != "{":
                raise ValueError(f"{where}: expected an object; found {found or 'the end of the file'!r}")
            yield self._object(where)
            index += 1
        self._position += 1
        if end := self._next():
            raise ValueError(f"behind the list: found {end!r}")

    def _next(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None, "the pattern matches the empty text"
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            self._text, self._position = self._file.read(_PART_CHARACTERS), 0
            if not self._text:
                return ""

    def _expect(self, character: str, where: str) -> None:
        if (found := self._next()) != character:
            raise ValueError(f"{where}: expected {character!r}; found {found or 'the end of the file'!r}")
        self._position += 1

    def _object(self, where: str) -> dict[str, Any]:
        """Decode the object at the position, reading on as long as it is not complete."""
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                length = len(self._text) - self._position
                more = self._file.read(max(_PART_CHARACTERS, length)) if length < _LONGEST_ENTRY_CHARACTERS else ""
                if not more:
                    raise ValueError(f"{where}: {error.msg}: {self._text[error.pos : error.pos + 40]!r}") from error
                self._text, self._position = self._text[self._position :] + more, 0
            else:
                return value
