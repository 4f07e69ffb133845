"""AnswerForm: the written form of answers as a regular expression, for decoding that generates nothing else.

Every answer that `AnswerGrammar.write` writes has this form, and every text of this form is parsed. The parser also
tolerates other spaces, missing padding and words around the objects; the form does not have them, so that most
delimiters have no alternative and need not be generated. Corners of a box may come in any order, as for the parser.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.prompts.coordinates import PLAIN, Coordinates

NO_OBJECT = "No object found."
"""The answer if the phrase refers to nothing in the image."""
OBJECT_SEPARATOR = "; "
MARKERS = (" +", " -")
"""Before the points on an object, and before those off it."""
MAX_COORDINATES = 1000
"""Boxes and points of the longest answer that is parsed. An answer of 512 tokens has about 40; without a limit, a long
repetition would become as many masks."""

_SPECIAL_CHARACTERS = frozenset(r".^$*+?()[]{}|\/")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of answers in a coordinate format, with at most so many positive and negative points per object.

    The regular expressions have only literals, `[0-9]`, groups, alternatives and counted repetitions, which mean the
    same in Python, Rust (vLLM, SGLang, llguidance) and xgrammar. They have no anchors: the complete answer matches.

    >>> import re
    >>> regex = AnswerForm(positives=1).regex(size_wh=(640, 480))
    >>> re.fullmatch(regex, "[120,340,560,780] +(200,400); [003,010,044,099]") is not None
    True
    >>> re.fullmatch(regex, "[120,340,560,780] +(200,400)(210,400)") is not None
    False

    Raises:
        ValueError: A negative number of points, or more than an answer may have.
    """

    coordinates: Coordinates = PLAIN
    positives: int = 0
    negatives: int = 0

    def __post_init__(self) -> None:
        if min(self.positives, self.negatives) < 0 or self.positives + self.negatives >= MAX_COORDINATES:
            raise ValueError(
                f"an object has 0 or more points, and an answer at most {MAX_COORDINATES} boxes and points; got "
                f"{self.positives} positive and {self.negatives} negative points"
            )

    @property
    def max_objects(self) -> int:
        """The number of objects up to which the answer is parsed, however many of its points each of them has."""
        return MAX_COORDINATES // (1 + self.positives + self.negatives)

    @property
    def tags(self) -> tuple[str, str]:
        """The texts before and behind each box that may be tokens of their own."""
        return self.coordinates.tags

    def regex(self, size_wh: tuple[int, int]) -> str:
        """Return the regular expression of the answers about an image of `size_wh` pixels, with any number of objects.

        Servers write counted repetitions out, so `max_objects` would make the automaton large; an answer is limited by
        its tokens.

        Raises:
            DataError: An image of a shape that has no grid in this format.
        """
        box, points = self._object(size_wh)
        tag, end_tag = map(_literal, self.coordinates.tags)
        item = f"({tag}{box}{end_tag}{points})"
        return f"{_literal(NO_OBJECT)}|{item}({_literal(OBJECT_SEPARATOR)}{item})*"

    def lark(self, size_wh: tuple[int, int], tags: tuple[str, str], lead: str = "", tail: str = "") -> str:
        """Return the grammar in llguidance's dialect of Lark, with `lead` before each answer and `tail` after it.

        `tags` are the tags of `coordinates` as expressions of that dialect: in some tokenizers they are special tokens,
        which a regular expression cannot have; see `text` for the others.

        Raises:
            DataError: An image of a shape that has no grid in this format.
        """
        box, points = self._object(size_wh)
        optional_points = f" (/{points}/)?" if points else ""
        return (
            f"start: {self.text(lead)} (NO_OBJECT | object (SEPARATOR object){{0,{self.max_objects - 1}}}) "
            f"{self.text(tail)}\n"
            f"object: {tags[0]} /{box}/ {tags[1]}{optional_points}\n"
            f"NO_OBJECT: /{_literal(NO_OBJECT)}/\n"
            f"SEPARATOR: /{_literal(OBJECT_SEPARATOR)}/\n"
        )

    @staticmethod
    def text(text: str) -> str:
        """Return `text` as an expression of the dialect of `lark`, whose strings are those of JSON."""
        return json.dumps(text)

    def _object(self, size_wh: tuple[int, int]) -> tuple[str, str]:
        """Return the regular expressions of a box without its tags, and of the points of an object."""
        bins_wh = self.coordinates.frame.of_image(size_wh).bins_wh
        numbers = [self._number(bins_wh[axis]) for axis in self.coordinates.axes]
        separator = _literal(self.coordinates.separator)

        def enclosed(delimiters: tuple[str, str], count: int) -> str:
            return separator.join(numbers * count).join(map(_literal, delimiters))

        point = enclosed(self.coordinates.point, 1)
        points = "".join(
            f"({_literal(marker)}({point}){{1,{limit}}})?"
            for marker, limit in zip(MARKERS, (self.positives, self.negatives), strict=True)
            if limit
        )
        return enclosed(self.coordinates.box, 2), points

    def _number(self, bins: int) -> str:
        """Return the regular expression of the numbers on an axis of `bins` bins, as they are written."""
        last, digits = bins - 1, len(str(bins - 1))
        padded = self.coordinates.padded
        alternatives = _up_to(last, digits) if padded else _unpadded_up_to(last)
        if self.coordinates.far_edge:
            alternatives.append(str(bins))
        return alternatives[0] if len(alternatives) == 1 else f"({'|'.join(alternatives)})"


@dataclass(frozen=True, slots=True)
class LocationForm:
    """The form of answers that mark each object by a location token; it has the interface of `AnswerForm`.

    >>> LocationForm().regex(size_wh=(640, 480))
    '(No object found\\\\.|(<location>){1,1000})'
    """

    @property
    def tags(self) -> tuple[str, str]:
        """The location token, and no text behind it."""
        return LOCATION_TOKEN, ""

    def regex(self, size_wh: tuple[int, int]) -> str:
        """Return the regular expression of the answers, which is the same for images of every size."""
        return f"({_literal(NO_OBJECT)}|({_literal(LOCATION_TOKEN)}){{1,{MAX_COORDINATES}}})"

    def lark(self, size_wh: tuple[int, int], tags: tuple[str, str], lead: str = "", tail: str = "") -> str:
        """Return the grammar in llguidance's dialect of Lark; see `AnswerForm.lark`."""
        return (
            f"start: {AnswerForm.text(lead)} (NO_OBJECT | {tags[0]}{{1,{MAX_COORDINATES}}}) {AnswerForm.text(tail)}\n"
            f"NO_OBJECT: /{_literal(NO_OBJECT)}/\n"
        )


def _unpadded_up_to(last: int) -> list[str]:
    """Return alternatives that match the numbers from 0 to `last` without leading zeros."""
    if last < 10:
        return _up_to(last, 1)
    digits = len(str(last))
    shorter = "[1-9]" if digits == 2 else f"[1-9]{_digits(digits - 2, at_least=0)}"
    # Numbers of all digits begin with 1 at least.
    first = str(last)[0]
    full = [f"{_range('1', chr(ord(first) - 1))}{_digits(digits - 1)}"] if first > "1" else []
    return ["0", shorter, *full, *(first + rest for rest in _up_to(int(str(last)[1:]), digits - 1))]


def _up_to(last: int, digits: int) -> list[str]:
    """Return alternatives that match the numbers from 0 to `last` in exactly `digits` digits."""
    text = str(last).zfill(digits)
    if set(text) == {"9"}:
        return [_digits(digits)]
    alternatives = [
        f"{text[:index]}{_range('0', chr(ord(digit) - 1))}{_digits(digits - 1 - index)}"
        for index, digit in enumerate(text[:-1])
        if digit != "0"
    ]
    return [*alternatives, text[:-1] + _range("0", text[-1])]


def _range(first: str, last: str) -> str:
    return first if first == last else f"[{first}-{last}]"


def _digits(count: int, at_least: int | None = None) -> str:
    """Return the expression of `count` digits, or of any number of them from `at_least` on."""
    if at_least is not None:
        return f"[0-9]{{{at_least},{count}}}"
    return "" if count == 0 else "[0-9]" if count == 1 else f"[0-9]{{{count}}}"


def _literal(text: str) -> str:
    escaped = "".join(f"\\{character}" if character in _SPECIAL_CHARACTERS else character for character in text)
    return escaped.replace("\n", r"\n")
