"""Fields of records that come from files, checked one by one where they enter.

This module knows no format: a reader says which fields it needs and where the record stands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from sam4mllm.errors import DataError

T = TypeVar("T")

LONGEST_PHRASE = 2000
"""Characters of the longest phrase."""


def require_field(record: object, key: str, kind: type[T], where: str) -> T:
    """The field `key` of a record, of type `kind`; True and False are no whole numbers.

    Raises:
        DataError: the record is no object, has no such field, or the field is of another type or no whole text.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with the field {key!r}; found {shorten(record)}")
    if key not in record:
        raise DataError(f"{where}: the field {key!r} is missing; found {', '.join(map(repr, record)) or 'no field'}")
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: the field {key!r} must be {kind.__name__}; found {shorten(value)}")
    # JSON can hold halves of a character ("\ud800"), which no file in UTF-8 can be given.
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise DataError(f"{where}: the field {key!r} holds half a character; found {shorten(value)}")
    return value


def check_phrase(phrase: str, where: str) -> None:
    """Nothing, for a phrase that a model can be asked; the longest one of ReasonSeg has some hundred characters.

    Raises:
        DataError: a phrase of more than LONGEST_PHRASE characters, which is no phrase but a file gone wrong.
    """
    if len(phrase) > LONGEST_PHRASE:
        raise DataError(
            f"{where}: the phrase has {len(phrase)} characters, {LONGEST_PHRASE} are the most; shorten it: "
            f"{shorten(phrase)}"
        )


def check_not_empty(phrase: str, where: str) -> str:
    """The phrase, for one that somebody wrote for this program: published sets may hold empty ones.

    Raises:
        DataError: there is nothing in it.
    """
    if not phrase.strip():
        raise DataError(f"{where}: the phrase is empty; say what is meant, or leave it out")
    return phrase


def read_json(path: Path, what: str, *, fallback_encoding: str | None = None) -> Any:
    """The value in a JSON file in UTF-8, or in `fallback_encoding` where it is no UTF-8.

    Raises:
        DataError: no such file; not JSON, or not text in these encodings.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {what} was expected there")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback_encoding is None:
            raise DataError(f"{path}: {what} must be UTF-8: {error}") from error
        try:
            text = content.decode(fallback_encoding)
        except UnicodeDecodeError as second:
            raise DataError(f"{path}: {what} is neither UTF-8 nor {fallback_encoding}: {second}") from second
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} must be JSON: {error}") from error


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number, and one that a float can hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def file_exists(path: Path) -> bool:
    """Whether there is such a file; a text that the system takes for no name (it is too long, say) names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shorten(value: object) -> str:
    """The value as an error shows it: its start is enough to find it again."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
