"""Parsing of instances.json, in which polygons stay text until they are used.

Nearly all of the file is the numbers of polygons, and most of them belong to objects that no phrase of RefCOCO refers
to: parsing all would take more time and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam4mllm.data.records import parse_json, read_text, unique_keys

_WHAT = "COCO's instances"
# Lists of numbers in one list, written as json and COCO's own files do. It cannot match within a JSON string, in which
# a quote is escaped.
_POLYGONS = re.compile(r'(?<="segmentation":)( ?)(\[\[[-+0-9.eE, ]*+\](?:, ?\[[-+0-9.eE, ]*+\])*+\])')
_CONSTANT = "NaN"
_DECODER = json.JSONDecoder()


class UnparsedPolygons:
    """COCO's polygons as the JSON text `text[start:end]`, a list of lists of what may be numbers."""

    __slots__ = ("_end", "_start", "_text")

    def __init__(self, text: str, start: int, end: int) -> None:
        self._text = text
        self._start = start
        self._end = end

    def parse(self) -> list[list[int | float]]:
        """Parse the polygons.

        Raises:
            ValueError: Not JSON.
        """
        try:
            return _DECODER.raw_decode(self._text, self._start)[0]
        except ValueError as error:
            raise ValueError(f"the segmentation must be JSON: {error}") from error

    def __repr__(self) -> str:
        return self._text[self._start : self._end]


def read_instances(path: Path) -> Any:
    """Read instances.json; polygons are `UnparsedPolygons`, or lists if the file has a form that is not recognized.

    Raises:
        DataError: No such file; not JSON, apart from the numbers of polygons, or not UTF-8.
    """
    text = read_text(path, _WHAT)
    polygons: list[UnparsedPolygons] = []

    def cut_out(match: re.Match[str]) -> str:
        polygons.append(UnparsedPolygons(text, *match.span(2)))
        return match[1] + _CONSTANT

    # Polygons are replaced by a constant that the file does not have, for which the parser calls a function, in the
    # order of the text.
    if _CONSTANT not in text and "Infinity" not in text:
        remaining: Iterator[UnparsedPolygons] = iter(polygons)
        try:
            return json.loads(
                _POLYGONS.sub(cut_out, text),
                object_pairs_hook=unique_keys,
                parse_constant=lambda _: next(remaining),
            )
        except (ValueError, RecursionError):
            # The error of the whole text names the position in the file.
            pass
    return parse_json(text, path, _WHAT)
