"""AnswerGrammar: write prompts as the text of an answer and parse it, for training targets and generated answers alike.

    answer   objects | "No object found."
    objects  object ("; " object)*
    object   "[x1,y1,x2,y2]" [" +" point+] [" -" point+]     after "+" the points on the object, after "-" those off it
    point    "(x,y)"

The example is in the plain format (SAM4MLLM's released settings: 0 to 999 in three digits, boxes in square brackets,
points in parentheses, the same sentence for no target). Brackets, grid, digits and the order of the axes are set by
`Coordinates`; the rest is the same for every model. Numbers are bins of the image's grid.

The parser tolerates what cannot change the meaning: spaces, missing padding, the case and the full stop of the sentence
for no object, and words around the objects without a digit, bracket, "+" or ";". It is strict in everything else, so
that an incomplete answer is not parsed as a complete one. An answer cut off exactly between two objects or two points
looks complete here; the engine reports it as not finished. An answer with more than 1000 boxes and points, which is a
repetition, is malformed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.prompts.answer_form import MARKERS, MAX_COORDINATES, NO_OBJECT, OBJECT_SEPARATOR, AnswerForm
from sam4mllm.prompts.coordinates import PLAIN, Coordinates

_NO_OBJECT = re.compile(r"\s*no\s+object\s+found\s*\.?\s*", re.IGNORECASE)
_CONTAINS_NO_OBJECT = re.compile(r"no\s+object\s+found", re.IGNORECASE)
_POSITIVES = re.compile(r"\s*\+")
_NEGATIVES = re.compile(r"\s*-")
_SEPARATOR = re.compile(r"\s*;")
_NOT_PROSE = re.compile(r"[0-9\[\](){}+;]")
_EXCERPT_LENGTH = 40


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A parsed answer. `prompts` is empty unless `status` is "ok"; `reason` is None unless it is "malformed".

    `box_spans` are the positions in the text (start, end) of each prompt's box.
    """

    status: Literal["ok", "no_object", "malformed"]
    prompts: tuple[SamPrompt, ...] = ()
    reason: str | None = None
    box_spans: tuple[tuple[int, int], ...] = ()


class _MalformedError(Exception):
    """The reason why an answer is malformed; `AnswerGrammar.parse` catches it."""


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """Writes prompts as text in a coordinate format, and parses them."""

    coordinates: Coordinates = PLAIN

    def write(self, prompts: Sequence[SamPrompt], size_wh: tuple[int, int]) -> str:
        """Return the answer text for `prompts` (pixels of an image of `size_wh`) in their order; NO_OBJECT for none.

        Positive points come before negative ones, each in the order of the prompt; coordinates outside the image are
        moved to its edge.

        Raises:
            ValueError: A prompt without a box, for which the grammar has no text.
            DataError: An image of a shape that has no grid in this format.
        """
        if not prompts:
            return NO_OBJECT
        writer = _Writer(self.coordinates, self.coordinates.frame.of_image(size_wh), size_wh)
        return OBJECT_SEPARATOR.join(writer.object(prompt) for prompt in prompts)

    def write_point(self, x: float, y: float, size_wh: tuple[int, int]) -> str:
        """Return the text of a single point in pixels of an image of `size_wh`, as in an answer."""
        return _Writer(self.coordinates, self.coordinates.frame.of_image(size_wh), size_wh).point(x, y)

    @property
    def box_pattern(self) -> re.Pattern[str]:
        """The pattern of a box anywhere in a text, which also numbers beyond the grid match."""
        return _patterns(self.coordinates).any_box

    def form(self, positives: int, negatives: int) -> AnswerForm:
        """Return the form of the answers with at most so many points on and off each object, for decoding."""
        return AnswerForm(self.coordinates, positives, negatives)

    def nearest(self, x: float, y: float, size_wh: tuple[int, int]) -> tuple[float, float]:
        """Return the point in pixels that is parsed where (x, y) was written: the center of its bin."""
        grid = self.coordinates.frame.of_image(size_wh)
        return grid.to_pixels(*grid.to_bins(x, y, size_wh), size_wh)

    def parse(self, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
        """Parse any string as an answer about an image of `size_wh` pixels.

        Coordinates are the centers of the written bins, in pixels. Boxes are inside the image with their corners in
        order; a box whose corners share a bin has no extent on that axis. A number beyond the grid, or any text that
        cannot be parsed, makes the whole answer malformed.

        >>> answer = AnswerGrammar().parse("[120,340,560,780] +(200,400) -(130,350)", size_wh=(1000, 1000))
        >>> answer.status, answer.prompts[0].box
        ('ok', Box(x1=120.5, y1=340.5, x2=560.5, y2=780.5))
        >>> AnswerGrammar().parse("[120,340,560", size_wh=(1000, 1000)).reason
        "object 1: expected a box [x1,y1,x2,y2], got '[120,340,560'"

        Raises:
            DataError: An image of a shape that has no grid in this format, whatever the text.
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
    """Writes prompts of an image of `size_wh` pixels as bins of its `grid`."""

    coordinates: Coordinates
    grid: Grid
    size_wh: tuple[int, int]

    def object(self, prompt: SamPrompt) -> str:
        if prompt.box is None:
            raise ValueError(f"an answer has a box for each object; got a prompt with points only: {prompt.points}")
        (tag, end_tag), (opening, closing) = self.coordinates.tags, self.coordinates.box
        corners = self._numbers([(prompt.box.x1, prompt.box.y1), (prompt.box.x2, prompt.box.y2)])
        text = f"{tag}{opening}{corners}{closing}{end_tag}"
        for marker, points in zip(MARKERS, (prompt.positives, prompt.negatives), strict=True):
            if points:
                text += marker + "".join(self.point(p.x, p.y) for p in points)
        return text

    def point(self, x: float, y: float) -> str:
        return self._numbers([(x, y)]).join(self.coordinates.point)

    def _numbers(self, points_xy: Iterable[tuple[float, float]]) -> str:
        bins_xy = [self.grid.to_bins(x, y, self.size_wh) for x, y in points_xy]
        digits_wh = [len(str(bins - 1)) if self.coordinates.padded else 0 for bins in self.grid.bins_wh]
        return self.coordinates.separator.join(
            str(bin_xy[axis]).zfill(digits_wh[axis]) for bin_xy in bins_xy for axis in self.coordinates.axes
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Parses text about an image of `size_wh` pixels with the bins of its `grid`."""

    coordinates: Coordinates
    grid: Grid
    size_wh: tuple[int, int]

    def objects(self, text: str) -> tuple[tuple[SamPrompt, ...], tuple[tuple[int, int], ...]]:
        """Return the prompts, and the positions (start, end) of their boxes in the text."""
        # 1. The text before the first box, which must be prose.
        if not text.strip():
            raise _MalformedError("the answer is empty")
        first = _patterns(self.coordinates).first_box.search(text)
        if first is None:
            raise _MalformedError(f"neither a box nor {NO_OBJECT!r}: {_excerpt(text)}")
        _check_prose(text[: first.start()], "before the first box")

        # 2. One object after the other, each separated by ";".
        prompts: list[SamPrompt] = []
        spans: list[tuple[int, int]] = []
        position, left = first.start(), MAX_COORDINATES
        while True:
            prompt, span, position = self._object(text, position, f"object {len(prompts) + 1}", left)
            prompts.append(prompt)
            spans.append(span)
            left -= 1 + len(prompt.points)
            if (separator := _SEPARATOR.match(text, position)) is None:
                break
            position = separator.end()

        # 3. The text after the last object, which must be prose.
        _check_prose(text[position:], f"after object {len(prompts)}")
        return tuple(prompts), tuple(spans)

    def _object(self, text: str, position: int, where: str, left: int) -> tuple[SamPrompt, tuple[int, int], int]:
        """Return the prompt written from `position` on, the position of its box, and the position after the object.

        `left` is the number of boxes and points that the answer may still have.
        """
        # 1. The box, with its corners brought in order.
        patterns = _patterns(self.coordinates)
        box_match = patterns.box.match(text, position)
        if box_match is None:
            raise _unreadable(f"a box {patterns.box_form}", text, position, where)
        (column_1, row_1), (column_2, row_2) = self._bins(box_match.groups(), where)
        x1, y1 = self.grid.to_pixels(min(column_1, column_2), min(row_1, row_2), self.size_wh)
        x2, y2 = self.grid.to_pixels(max(column_1, column_2), max(row_1, row_2), self.size_wh)
        position = box_match.end()
        _check_count(left - 1)

        # 2. The positive points, then the negative ones; a marker needs at least one point.
        points: list[Point] = []
        for marker, label in ((_POSITIVES, POSITIVE), (_NEGATIVES, NEGATIVE)):
            if (marker_match := marker.match(text, position)) is None:
                continue
            start = marker_match.end()
            point_match = patterns.point.match(text, start)
            if point_match is None:
                expected = f"a point {patterns.point_form} after {marker_match.group().strip()!r}"
                raise _unreadable(expected, text, start, where)
            while point_match is not None:
                ((column, row),) = self._bins(point_match.groups(), where)
                points.append(Point(*self.grid.to_pixels(column, row, self.size_wh), label))
                _check_count(left - 1 - len(points))
                position = point_match.end()
                point_match = patterns.point.match(text, position)
        return SamPrompt(Box(x1, y1, x2, y2), tuple(points)), box_match.span(), position

    def _bins(self, numbers: Sequence[str], where: str) -> list[tuple[int, int]]:
        """Return the numbers, two for each corner or point, as bins (column, row) of the grid."""
        bins_read = []
        for index, number in enumerate(numbers):
            axis = self.coordinates.axes[index % 2]
            last_bin = self.grid.bins_wh[axis] - 1
            last = last_bin + self.coordinates.far_edge
            digits = number.lstrip("0") or "0"
            # Lengths are compared first because int() refuses very long numbers.
            if len(digits) > len(str(last)) or int(digits) > last:
                raise _MalformedError(
                    f"{where}: {'xy'[axis]} = {digits[:_EXCERPT_LENGTH]} is beyond the grid's last bin {last_bin}"
                )
            bins_read.append(min(int(digits), last_bin))
        column, row = self.coordinates.axes
        return [(pair[column], pair[row]) for pair in zip(bins_read[::2], bins_read[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class _Patterns:
    """The regular expressions of a coordinate format, and its forms of box and point for messages."""

    first_box: re.Pattern[str]
    box: re.Pattern[str]
    any_box: re.Pattern[str]
    point: re.Pattern[str]
    box_form: str
    point_form: str


@functools.lru_cache(maxsize=32)
def _patterns(coordinates: Coordinates) -> _Patterns:
    def spaced(delimiter: str) -> str:
        return r"\s*" + re.escape(delimiter.strip())

    def numbers(delimiters: tuple[str, str], count: int) -> str:
        opening, closing = map(spaced, delimiters)
        return opening + spaced(coordinates.separator).join([r"\s*([0-9]+)"] * count) + closing

    tag, end_tag = (f"(?:{spaced(tag)})?" if tag else "" for tag in coordinates.tags)
    # Without a tag the search must not begin with `\s*`: it would take quadratic time in a long run of spaces.
    first_tag = f"(?:{re.escape(coordinates.tags[0])}\\s*)?" if coordinates.tags[0] else ""
    opening = re.escape(coordinates.box[0].strip())
    comma, order = coordinates.separator.strip(), coordinates.axis_order
    return _Patterns(
        first_box=re.compile(first_tag + opening),
        box=re.compile(tag + numbers(coordinates.box, 4) + end_tag),
        any_box=re.compile(first_tag + numbers(coordinates.box, 4).removeprefix(r"\s*") + end_tag),
        point=re.compile(numbers(coordinates.point, 2)),
        box_form=comma.join(f"{axis}{corner}" for corner in "12" for axis in order).join(coordinates.box),
        point_form=comma.join(order).join(coordinates.point),
    )


def _check_count(left: int) -> None:
    """Raise if the answer has more boxes and points than it may have."""
    if left < 0:
        raise _MalformedError(f"more than {MAX_COORDINATES} boxes and points")


def _check_prose(text: str, where: str) -> None:
    """Raise unless the text around the objects is words only, which cannot be part of an answer."""
    if _CONTAINS_NO_OBJECT.search(text):
        raise _MalformedError(f"the answer has an object and {NO_OBJECT!r}")
    if _NOT_PROSE.search(text) or (where.startswith("after") and text.lstrip().startswith(("-", ","))):
        raise _MalformedError(f"unreadable {where}: {_excerpt(text)}")


def _unreadable(expected: str, text: str, position: int, where: str) -> _MalformedError:
    rest = text[position:]
    found = _excerpt(rest) if rest.strip() else "the end of the answer"
    return _MalformedError(f"{where}: expected {expected}, got {found}")


def _excerpt(text: str) -> str:
    """Return the first characters of `text`, quoted, on one line; unprintable characters are escaped."""
    text = text.strip()
    quoted = repr(text if len(text) <= _EXCERPT_LENGTH else text[: _EXCERPT_LENGTH - 3] + "...")
    longest = 3 * _EXCERPT_LENGTH  # An escape takes up to ten characters.
    return quoted if len(quoted) <= longest else f"{quoted[: longest - 4]}...{quoted[-1]}"
