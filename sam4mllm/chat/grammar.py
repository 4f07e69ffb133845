"""AnswerGrammar: the one text form of an answer, written and parsed in one place: what is taught is what is read.

    answer   objects | "No object found."
    objects  object ("; " object)*
    object   "[x1,y1,x2,y2]" [" +" point+] [" -" point+]     after "+" the points on the object, after "-" those off it
    point    "(x,y)"

Numbers are bins of the grid, zero-padded to the digits of its last bin (SAM4MLLM's released settings: 0 to 999 in
three digits, boxes in square brackets, points in round ones, the same sentence for no target).

Reading is more tolerant than writing in what cannot change the meaning: spaces, missing padding, the case and the full
stop of the sentence for no object, and words around the objects that hold no number, bracket, "+" or ";". It is strict
in everything else, so half an answer never passes for a whole one. An answer cut off exactly between two objects or two
points is a whole answer to this module: only who generated the text knows that it was cut.

This module knows no models, no questions and no pixels beyond a picture's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt

NO_OBJECT = "No object found."

_NO_OBJECT = re.compile(r"\s*no\s+object\s+found\s*\.?\s*", re.IGNORECASE)
_SAYS_NO_OBJECT = re.compile(r"no\s+object\s+found", re.IGNORECASE)
_BOX = re.compile(r"\s*\[\s*([0-9]+)\s*,\s*([0-9]+)\s*,\s*([0-9]+)\s*,\s*([0-9]+)\s*\]")
_POINT = re.compile(r"\s*\(\s*([0-9]+)\s*,\s*([0-9]+)\s*\)")
_POSITIVES = re.compile(r"\s*\+")
_NEGATIVES = re.compile(r"\s*-")
_SEPARATOR = re.compile(r"\s*;")
_NOT_PROSE = re.compile(r"[0-9\[\](){}+;]")
_EXCERPT_LENGTH = 40


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What an answer says. `prompts` is empty unless `status` is "ok"; `reason` is None unless it is "malformed"."""

    status: Literal["ok", "no_object", "malformed"]
    prompts: tuple[SamPrompt, ...] = ()
    reason: str | None = None


class _MalformedError(Exception):
    """Carries the reason from where it is found to `AnswerGrammar.parse`; never leaves this module."""


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """Writes prompts as text on a grid and reads them back."""

    grid: Grid = Grid()  # noqa: RUF009 - frozen, so one instance serves all

    def write(self, prompts: Sequence[SamPrompt], size_wh: tuple[int, int]) -> str:
        """The answer that names `prompts` (pixels of a picture of `size_wh`) in their order; NO_OBJECT for none.

        Positives stand before negatives, each in the order of the prompt; coordinates outside the picture go to its
        edge.

        Raises:
            ValueError: a prompt without a box, which this grammar cannot say.
        """
        if not prompts:
            return NO_OBJECT
        return "; ".join(self._write_object(prompt, size_wh) for prompt in prompts)

    def parse(self, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
        """What `text` says about a picture of `size_wh` pixels. Takes any string and raises nothing.

        Coordinates are the centres of the bins written; boxes lie inside the picture with their corners in order, and
        one whose corners share a bin has no extent in that direction. One number beyond the grid, or anything
        unreadable, makes the whole answer malformed.
        """
        if _NO_OBJECT.fullmatch(text):
            return ParsedAnswer("no_object")
        try:
            return ParsedAnswer("ok", self._read_objects(text, size_wh))
        except _MalformedError as malformed:
            return ParsedAnswer("malformed", reason=str(malformed))

    def _write_object(self, prompt: SamPrompt, size_wh: tuple[int, int]) -> str:
        if prompt.box is None:
            raise ValueError(f"an answer names each object by a box; got a prompt with points only: {prompt.points}")
        corners = (prompt.box.x1, prompt.box.y1), (prompt.box.x2, prompt.box.y2)
        text = "[" + ",".join(self._write_position(x, y, size_wh) for x, y in corners) + "]"
        for sign, points in (("+", prompt.positives), ("-", prompt.negatives)):
            if points:
                text += f" {sign}" + "".join(f"({self._write_position(p.x, p.y, size_wh)})" for p in points)
        return text

    def _write_position(self, x: float, y: float, size_wh: tuple[int, int]) -> str:
        return ",".join(
            str(index).zfill(len(str(bins - 1)))
            for index, bins in zip(self.grid.to_bins(x, y, size_wh), self.grid.bins_wh, strict=True)
        )

    def _read_objects(self, text: str, size_wh: tuple[int, int]) -> tuple[SamPrompt, ...]:
        if not text.strip():
            raise _MalformedError("the answer is empty")
        start = text.find("[")
        if start < 0:
            raise _MalformedError(f"neither a box nor {NO_OBJECT!r}: {_excerpt(text)}")
        _check_prose(text[:start], "before the first box")

        prompts: list[SamPrompt] = []
        position = start
        while True:
            prompt, position = self._read_object(text, position, f"object {len(prompts) + 1}", size_wh)
            prompts.append(prompt)
            separator = _SEPARATOR.match(text, position)
            if separator is None:
                break
            position = separator.end()
        _check_prose(text[position:], f"after object {len(prompts)}")
        return tuple(prompts)

    def _read_object(self, text: str, position: int, where: str, size_wh: tuple[int, int]) -> tuple[SamPrompt, int]:
        """The object written from `position` on, and the position behind it."""
        box_match = _BOX.match(text, position)
        if box_match is None:
            raise _unreadable("a box [x1,y1,x2,y2]", text, position, where)
        column_1, row_1, column_2, row_2 = self._read_bins(box_match.groups(), where)
        x1, y1 = self.grid.to_pixels(min(column_1, column_2), min(row_1, row_2), size_wh)
        x2, y2 = self.grid.to_pixels(max(column_1, column_2), max(row_1, row_2), size_wh)
        position = box_match.end()

        points: list[Point] = []
        for sign, label in ((_POSITIVES, POSITIVE), (_NEGATIVES, NEGATIVE)):
            sign_match = sign.match(text, position)
            if sign_match is None:
                continue
            point_match = _POINT.match(text, sign_match.end())
            if point_match is None:
                raise _unreadable(f"a point (x,y) after {sign_match.group().strip()!r}", text, sign_match.end(), where)
            while point_match is not None:
                column, row = self._read_bins(point_match.groups(), where)
                points.append(Point(*self.grid.to_pixels(column, row, size_wh), label))
                position = point_match.end()
                point_match = _POINT.match(text, position)
        return SamPrompt(Box(x1, y1, x2, y2), tuple(points)), position

    def _read_bins(self, numbers: Iterable[str], where: str) -> list[int]:
        """The numbers, x and y in turn, as bins that the grid has."""
        bins_read = []
        for index, number in enumerate(numbers):
            last = self.grid.bins_wh[index % 2] - 1
            digits = number.lstrip("0") or "0"
            # Lengths are compared first because int() refuses very long numbers.
            if len(digits) > len(str(last)) or int(digits) > last:
                axis = "xy"[index % 2]
                raise _MalformedError(
                    f"{where}: {axis} = {digits[:_EXCERPT_LENGTH]} is beyond the grid's last bin {last}"
                )
            bins_read.append(int(digits))
        return bins_read


def _check_prose(text: str, where: str) -> None:
    """Refuses words around the objects that could be part of an answer."""
    if _SAYS_NO_OBJECT.search(text):
        raise _MalformedError(f"the answer names an object and says {NO_OBJECT!r}")
    if _NOT_PROSE.search(text) or (where.startswith("after") and text.lstrip().startswith(("-", ","))):
        raise _MalformedError(f"unreadable {where}: {_excerpt(text)}")


def _unreadable(expected: str, text: str, position: int, where: str) -> _MalformedError:
    rest = text[position:]
    return _MalformedError(
        f"{where}: expected {expected}, got {_excerpt(rest) if rest.strip() else 'the end of the answer'}"
    )


def _excerpt(text: str) -> str:
    """The first characters of `text`, quoted, on one line."""
    text = text.strip()
    return repr(text if len(text) <= _EXCERPT_LENGTH else text[: _EXCERPT_LENGTH - 3] + "...")
