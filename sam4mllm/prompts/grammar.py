"""AnswerGrammar: the one text form of an answer, written and parsed in one place: what is taught is what is read.

    answer   objects | "No object found."
    objects  object ("; " object)*
    object   "[x1,y1,x2,y2]" [" +" point+] [" -" point+]     after "+" the points on the object, after "-" those off it
    point    "(x,y)"

So it looks in the plain convention (SAM4MLLM's released settings: 0 to 999 in three digits, boxes in square brackets,
points in round ones, the same sentence for no target). Which brackets, which grid and which digits is said by
`Coordinates`; the rest is the same for every model. Numbers are bins of the image's grid.

Reading is more tolerant than writing in what cannot change the meaning: spaces, missing padding, the case and the full
stop of the sentence for no object, and words around the objects that hold no number, bracket, "+" or ";". It is strict
in everything else, so half an answer never passes for a whole one. An answer cut off exactly between two objects or two
points is a whole answer to this module: only who generated the text knows that it was cut.

This module knows no models, no questions and no pixels beyond an image's size.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.prompts.coordinates import PLAIN, Coordinates

NO_OBJECT = "No object found."

_NO_OBJECT = re.compile(r"\s*no\s+object\s+found\s*\.?\s*", re.IGNORECASE)
_SAYS_NO_OBJECT = re.compile(r"no\s+object\s+found", re.IGNORECASE)
_POSITIVES = re.compile(r"\s*\+")
_NEGATIVES = re.compile(r"\s*-")
_SEPARATOR = re.compile(r"\s*;")
_NOT_PROSE = re.compile(r"[0-9\[\](){}+;]")
_EXCERPT_LENGTH = 40


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What an answer says. `prompts` is empty unless `status` is "ok"; `reason` is None unless it is "malformed".

    `box_spans` are where in the text (start, end) each prompt's box is written.
    """

    status: Literal["ok", "no_object", "malformed"]
    prompts: tuple[SamPrompt, ...] = ()
    reason: str | None = None
    box_spans: tuple[tuple[int, int], ...] = ()


class _MalformedError(Exception):
    """Carries the reason from where it is found to `AnswerGrammar.parse`; never leaves this module."""


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """Writes prompts as text by a convention and reads them back."""

    coordinates: Coordinates = PLAIN

    def write(self, prompts: Sequence[SamPrompt], size_wh: tuple[int, int]) -> str:
        """The answer that names `prompts` (pixels of an image of `size_wh`) in their order; NO_OBJECT for none.

        Positives stand before negatives, each in the order of the prompt; coordinates outside the image go to its
        edge.

        Raises:
            ValueError: a prompt without a box, which this grammar cannot say.
            DataError: an image of a shape that has no grid in this convention.
        """
        if not prompts:
            return NO_OBJECT
        writer = _Writer(self.coordinates, self.coordinates.frame.of_image(size_wh), size_wh)
        return "; ".join(writer.object(prompt) for prompt in prompts)

    def write_point(self, x: float, y: float, size_wh: tuple[int, int]) -> str:
        """A place by itself, in pixels of an image of `size_wh`, as answers write points."""
        return _Writer(self.coordinates, self.coordinates.frame.of_image(size_wh), size_wh).point(x, y)

    def nearest(self, x: float, y: float, size_wh: tuple[int, int]) -> tuple[float, float]:
        """The place that is read, in pixels, where (x, y) is written."""
        grid = self.coordinates.frame.of_image(size_wh)
        return grid.to_pixels(*grid.to_bins(x, y, size_wh), size_wh)

    def parse(self, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
        """What `text` says about an image of `size_wh` pixels. Takes any string, and has an answer for each.

        Coordinates are the centres of the bins written; boxes lie inside the image with their corners in order, and
        one whose corners share a bin has no extent in that direction. One number beyond the grid, or anything
        unreadable, makes the whole answer malformed.

        Raises:
            DataError: an image of a shape that has no grid in this convention, whatever the text.
        """
        grid = self.coordinates.frame.of_image(size_wh)
        if _NO_OBJECT.fullmatch(text):
            return ParsedAnswer("no_object")
        try:
            prompts, spans = _Reader(self.coordinates, grid, size_wh).objects(text)
            return ParsedAnswer("ok", prompts, box_spans=spans)
        except _MalformedError as malformed:
            return ParsedAnswer("malformed", reason=str(malformed))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes about an image of `size_wh` pixels on its `grid`."""

    coordinates: Coordinates
    grid: Grid
    size_wh: tuple[int, int]

    def object(self, prompt: SamPrompt) -> str:
        if prompt.box is None:
            raise ValueError(f"an answer names each object by a box; got a prompt with points only: {prompt.points}")
        (tag, end_tag), (opening, closing) = self.coordinates.tags, self.coordinates.box
        corners = self._numbers([(prompt.box.x1, prompt.box.y1), (prompt.box.x2, prompt.box.y2)])
        text = f"{tag}{opening}{corners}{closing}{end_tag}"
        for sign, points in (("+", prompt.positives), ("-", prompt.negatives)):
            if points:
                text += f" {sign}" + "".join(self.point(p.x, p.y) for p in points)
        return text

    def point(self, x: float, y: float) -> str:
        opening, closing = self.coordinates.point
        return f"{opening}{self._numbers([(x, y)])}{closing}"

    def _numbers(self, places_xy: Iterable[tuple[float, float]]) -> str:
        padded = self.coordinates.padded
        return self.coordinates.separator.join(
            str(index).zfill(len(str(bins - 1)) if padded else 0)
            for x, y in places_xy
            for index, bins in zip(self.grid.to_bins(x, y, self.size_wh), self.grid.bins_wh, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads about an image of `size_wh` pixels on its `grid`."""

    coordinates: Coordinates
    grid: Grid
    size_wh: tuple[int, int]

    def objects(self, text: str) -> tuple[tuple[SamPrompt, ...], tuple[tuple[int, int], ...]]:
        """The objects, and where their boxes stand in the text."""
        if not text.strip():
            raise _MalformedError("the answer is empty")
        first = _patterns(self.coordinates).first_box.search(text)
        if first is None:
            raise _MalformedError(f"neither a box nor {NO_OBJECT!r}: {_excerpt(text)}")
        _check_prose(text[: first.start()], "before the first box")

        prompts: list[SamPrompt] = []
        spans: list[tuple[int, int]] = []
        position = first.start()
        while True:
            prompt, span, position = self._object(text, position, f"object {len(prompts) + 1}")
            prompts.append(prompt)
            spans.append(span)
            separator = _SEPARATOR.match(text, position)
            if separator is None:
                break
            position = separator.end()
        _check_prose(text[position:], f"after object {len(prompts)}")
        return tuple(prompts), tuple(spans)

    def _object(self, text: str, position: int, where: str) -> tuple[SamPrompt, tuple[int, int], int]:
        """The object written from `position` on, where its box stands, and the position behind it."""
        patterns = _patterns(self.coordinates)
        box_match = patterns.box.match(text, position)
        if box_match is None:
            raise _unreadable(f"a box {patterns.box_form}", text, position, where)
        column_1, row_1, column_2, row_2 = self._bins(box_match.groups(), where)
        x1, y1 = self.grid.to_pixels(min(column_1, column_2), min(row_1, row_2), self.size_wh)
        x2, y2 = self.grid.to_pixels(max(column_1, column_2), max(row_1, row_2), self.size_wh)
        position = box_match.end()

        points: list[Point] = []
        for sign, label in ((_POSITIVES, POSITIVE), (_NEGATIVES, NEGATIVE)):
            sign_match = sign.match(text, position)
            if sign_match is None:
                continue
            point_match = patterns.point.match(text, sign_match.end())
            if point_match is None:
                raise _unreadable(
                    f"a point {patterns.point_form} after {sign_match.group().strip()!r}", text, sign_match.end(), where
                )
            while point_match is not None:
                column, row = self._bins(point_match.groups(), where)
                points.append(Point(*self.grid.to_pixels(column, row, self.size_wh), label))
                position = point_match.end()
                point_match = patterns.point.match(text, position)
        return SamPrompt(Box(x1, y1, x2, y2), tuple(points)), box_match.span(), position

    def _bins(self, numbers: Iterable[str], where: str) -> list[int]:
        """The numbers, x and y in turn, as bins that the grid has."""
        bins_read = []
        for index, number in enumerate(numbers):
            last_bin = self.grid.bins_wh[index % 2] - 1
            last = last_bin + self.coordinates.far_edge
            digits = number.lstrip("0") or "0"
            # Lengths are compared first because int() refuses very long numbers.
            if len(digits) > len(str(last)) or int(digits) > last:
                axis = "xy"[index % 2]
                raise _MalformedError(
                    f"{where}: {axis} = {digits[:_EXCERPT_LENGTH]} is beyond the grid's last bin {last_bin}"
                )
            bins_read.append(min(int(digits), last_bin))
        return bins_read


@dataclass(frozen=True, slots=True)
class _Patterns:
    """A convention as regular expressions, and as the forms that a reason names."""

    first_box: re.Pattern[str]
    box: re.Pattern[str]
    point: re.Pattern[str]
    box_form: str
    point_form: str


@functools.lru_cache(maxsize=32)
def _patterns(coordinates: Coordinates) -> _Patterns:
    def loosely(sign: str) -> str:
        return r"\s*" + re.escape(sign.strip())

    def numbers(signs: tuple[str, str], count: int) -> str:
        opening, closing = map(loosely, signs)
        return opening + loosely(coordinates.separator).join([r"\s*([0-9]+)"] * count) + closing

    tag, end_tag = (f"(?:{loosely(tag)})?" if tag else "" for tag in coordinates.tags)
    # No space is looked for where there is no tag: a search through a long run of spaces would take ever longer.
    first_tag = f"(?:{re.escape(coordinates.tags[0])}\\s*)?" if coordinates.tags[0] else ""
    opening = re.escape(coordinates.box[0].strip())
    comma = coordinates.separator.strip()
    return _Patterns(
        first_box=re.compile(first_tag + opening),
        box=re.compile(tag + numbers(coordinates.box, 4) + end_tag),
        point=re.compile(numbers(coordinates.point, 2)),
        box_form=comma.join(["x1", "y1", "x2", "y2"]).join(coordinates.box),
        point_form=comma.join("xy").join(coordinates.point),
    )


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
