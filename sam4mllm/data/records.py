"""Records in files: JSON and JSON lines, validated by pydantic, with errors that name the file and the record.

A format is a subclass of `Record`, whose annotations are the types of its fields. Types are strict: True is not a
number, and "1" is not an integer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from sam4mllm.data.file_kinds import HEAD_BYTES, is_json_list, wrong_kind
from sam4mllm.data.problems import add_problems
from sam4mllm.errors import DataError, Sam4mllmError
from sam4mllm.utils.messages import first_and_more
from sam4mllm.utils.paths import with_start

LONGEST_PHRASE = 2000
"""The maximum length of a phrase in characters; the longest one of ReasonSeg has a few hundred."""

# An error about a file lists the first lines that are invalid and counts the others.
_LISTED_LINES = 10
# A line is read into memory as a whole. The mask of a photograph takes some kilobytes, that of noise some megabytes.
_LONGEST_LINE_BYTES = 64 * 2**20
_PLURALS = {"line": "lines", "entry": "entries"}
# In cp1252, English texts have single letters above ASCII, perhaps beside punctuation at 0x80 to 0x9F. Texts in other
# alphabets and in encodings of two bytes for a character (GBK, Shift-JIS) have adjacent letters or longer sequences.
_OTHER_ALPHABET = re.compile(rb"[\xa0-\xff]{2}|(?![\x80-\x9f]{4})[\x80-\xff]{4}")

Text = Annotated[str, Field(max_length=sys.maxsize)]
"""Text without lone surrogates such as "\\ud800", which JSON can hold and UTF-8 cannot encode.

pydantic encodes text to measure it, and rejects text that it cannot encode.
"""

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "text",
    "too_short": "a list of at least one value",
}


class Record(BaseModel):
    """Base class of the records in files. Fields that a subclass does not name are ignored; numbers are finite."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)


AnyRecord = TypeVar("AnyRecord", bound=Record)
Parsed = TypeVar("Parsed")


def parse_record(kind: type[AnyRecord], value: object, where: str = "") -> AnyRecord:
    """Validate a JSON value as a record; `where` names it in the error: the file, and its number or id.

    Raises:
        DataError: The first problem, as "{where}: the field 'x' must be an integer; found 'abc'".
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelled field is missing as well; that it is unknown explains more.
        unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
        raise DataError(f"{_prefix(where)}{_describe((unknown or problems)[0], kind)}", "field") from None


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _describe(error: ErrorDetails, kind: type[Record]) -> str:
    """Word pydantic's error as "the field 'objects[0].score' must be a number; found 'high'"."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    value, problem = error["input"], error["type"]
    if problem == "extra_forbidden":
        fields = ", ".join(field.alias or key for key, field in kind.model_fields.items())
        return f"unknown field {name!r}; the fields are {fields}"
    if problem == "missing":
        keys = ", ".join(map(repr, value)) if isinstance(value, dict) else ""
        return f"the field {name!r} is missing; found {keys or 'no field'}"
    if problem == "string_unicode":
        return f"the field {name!r} holds a lone surrogate, which UTF-8 cannot encode; found {shorten(value)}"
    if not name:
        fields = ", ".join(field.alias or key for key, field in kind.model_fields.items() if field.is_required())
        return f"expected an object{f' with {fields}' if fields else ''}; found {shorten(value)}"
    if problem in _EXPECTED:
        return f"the field {name!r} must be {_EXPECTED[problem]}; found {shorten(value)}"
    message = error["msg"]
    return f"the field {name!r}: {message[:1].lower()}{message[1:]}; found {shorten(value)}"


def read_json(path: Path, what: str, *, fallback_encoding: str | None = None) -> Any:
    """Read the value of a JSON file in UTF-8, or in `fallback_encoding` if it is not UTF-8.

    Raises:
        DataError: No such file; not JSON, or not text in these encodings.
    """
    return parse_json(read_text(path, what, fallback_encoding=fallback_encoding), path, what)


def parse_json(text: str, path: Path, what: str) -> Any:
    """Parse the text of the file `path`.

    Raises:
        DataError: Not JSON, or two equal fields in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} must be JSON: {error}", "json") from error


def read_text(path: Path, what: str, *, fallback_encoding: str | None = None) -> str:
    """Read the text of a JSON file in UTF-8, or in `fallback_encoding` if it is not UTF-8.

    Raises:
        DataError: No such file; not text in these encodings.
    """
    if not path.is_file():
        raise DataError(f"{with_start(path)}: no such file; {what} was expected there")
    content = path.read_bytes()
    if kind := wrong_kind(content[:HEAD_BYTES]):
        raise DataError(f"{path}: {kind} ({what}, in JSON, was expected)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback_encoding is None:
            raise DataError(f"{path}: {what} must be UTF-8: {error}") from error
        if found := _OTHER_ALPHABET.search(content):
            raise DataError(
                f"{path}: {what} is neither UTF-8 nor English text in {fallback_encoding}: adjacent bytes "
                f"0x{found[0].hex()} at {found.start()}, as in GBK; convert the file to UTF-8"
            ) from error
        try:
            return content.decode(fallback_encoding)
        except UnicodeDecodeError as second:
            raise DataError(f"{path}: {what} is neither UTF-8 nor {fallback_encoding}: {second}") from second


def read_lines(
    path: Path,
    parse: Callable[[object], Parsed],
    problems: list[DataError],
    error_type: type[Sam4mllmError] = DataError,
) -> Iterator[tuple[int, Parsed]]:
    """Yield the line numbers (from 1) and the parsed records of a JSONL file; blank lines are skipped.

    The problems of invalid lines are appended to `problems`, so that all of them can be reported at once.

    Raises:
        Sam4mllmError: Of type `error_type`: the file cannot be read, or is of another format.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise error_type(f"{with_start(path)}: cannot be read: {error.strerror}") from error
    with file:
        head = file.read(HEAD_BYTES)
        if head.strip() and (kind := wrong_kind(head)):
            raise error_type(f"{path}: {kind} (lines of JSON were expected)")
        if is_json_list(head):
            raise error_type(f"{path}: is a JSON list; write one record per line, without brackets and commas")
        file.seek(0)
        for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE_BYTES + 1), b""), start=1):
            if len(line) > _LONGEST_LINE_BYTES:
                raise error_type(
                    f"{path}: line {number} is longer than {_LONGEST_LINE_BYTES >> 20} MiB; write one record per line"
                )
            if not line.strip():
                continue
            try:
                record = parse(json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_keys))
            except json.JSONDecodeError as error:
                problems.append(DataError(f"line {number}: not JSON: {error.msg} (column {error.colno})", "json"))
            # OverflowError: a number with more digits than a float can hold.
            except (ValueError, OverflowError, RecursionError, DataError) as error:
                problems.append(record_problem("line", number, error, "json"))
            else:
                yield number, record


def record_problem(unit: str, number: int, error: Exception, kind: str | None = None) -> DataError:
    """Return the problem of a line, an entry or a row whose parsing raised `error`."""
    problem = DataError(f"{unit} {number}: {error}", kind)
    problem.__cause__ = error
    return problem


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dict; Python would silently keep the last one of two equal keys."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {repeated!r} occurs twice; remove one")
    return record


def raise_problems(
    path: Path,
    problems: list[DataError],
    error_type: type[Sam4mllmError] = DataError,
    *,
    unit: Literal["line", "entry"] = "line",
    advice: str = "",
) -> None:
    """Raise one error that counts all problems and lists the first ten; return if there are none.

    Within `listing_problems()`, each is added to the list as an error of its own, and none is raised.

    `unit` is what a problem is about: a line of a JSONL file, or an entry of a JSON list. `advice` ends the message.

    Raises:
        Sam4mllmError: Of type `error_type`.
    """
    if problems and not add_problems(_in_file(path, problem) for problem in problems):
        units = unit if len(problems) == 1 else _PLURALS[unit]
        listed = first_and_more(problems, _LISTED_LINES)
        raise error_type(f"{path}: {len(problems)} bad {units}: {listed}{advice and f'; {advice}'}")


def _in_file(path: Path, problem: DataError) -> DataError:
    error = DataError(f"{path}, {problem}", problem.kind)
    error.__cause__ = problem.__cause__
    return error


def check_phrase(phrase: str, where: str) -> None:
    """Check that a phrase is text that UTF-8 can encode, and not longer than `LONGEST_PHRASE`.

    Raises:
        DataError: It is longer, so the file is probably damaged; or it has a lone surrogate, which stands for a byte of
            a command line that is not UTF-8.
    """
    try:
        phrase.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the phrase is not UTF-8 (character {error.start + 1} is {phrase[error.start]!r}); use a "
            "terminal or a script in UTF-8",
            "phrase",
        ) from error
    if len(phrase) > LONGEST_PHRASE:
        raise DataError(
            f"{where}: the phrase has {len(phrase)} characters, but at most {LONGEST_PHRASE} are supported; shorten "
            f"it: {shorten(phrase)}",
            "phrase",
        )


def check_not_empty(phrase: str, where: str = "") -> str:
    """Return the phrase if it is not blank. For custom data and queries: published data sets hold empty phrases.

    Raises:
        DataError: The phrase is blank.
    """
    if not phrase.strip():
        raise DataError(f"{_prefix(where)}the phrase is empty; describe the object", "phrase")
    return phrase


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer; True and False are not integers."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number that a float can hold; True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def file_exists(path: Path) -> bool:
    """Return whether `path` is a file; False also for a name that the system rejects, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shorten(value: object) -> str:
    """Return the value's repr for an error message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
