"""Lines of JSONL files: what a record needs to be written as one, and its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol


class JsonRecord(Protocol):
    """A record that is a line of a JSONL file."""

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain JSON."""
        ...


def dump_line(record: JsonRecord) -> str:
    """Return the record as one line of JSON with a line end; equal records give equal bytes."""
    return dump_object(record.to_json())


def dump_object(value: Mapping[str, Any]) -> str:
    """Return plain JSON as one line with a line end."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def encodable(message: str) -> str:
    """Return a message with "?" in place of lone surrogates, which it may quote and a file in UTF-8 cannot hold."""
    return message.encode("utf-8", "replace").decode("utf-8")
