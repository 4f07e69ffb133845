"""Questions and answers in text that mark regions of the image: how each method writes and reads the marks.

A question marks a region by `REGION` ("What is at <region>?"), an answer marks a box behind the words that it is about.
PPG and PQPP write boxes as the text of their answers, and pix2emb writes location tokens:

    What is at [120,340,560,780]?     A red ring [120,340,560,780] on two stars [100,200,300,600]; [400,200,600,600].
    What is at <location>?            A red ring<location> on two stars<location><location>.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.base import Method
from sam4mllm.methods.parsing import objects_in_reading_order, require_locating_engine
from sam4mllm.mllm.engine import Engine, Reply
from sam4mllm.prompts.conversation import LOCATION_TOKEN, LocatedText, Location, inference_conversation
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import REGION

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_BETWEEN_MARKS = re.compile(r"[\s;]*")


@dataclass(frozen=True, slots=True)
class TextQuestion:
    """A question about an image of `size_wh` pixels that is answered in text.

    `text` has `REGION` once for each of `boxes`, in their order; these are in pixels of the image. `image` is a file, a
    PIL image or an array (H, W, 3) uint8 RGB.

    Raises:
        DataError: The text has another number of regions than `boxes`.
    """

    image: str | Path | Image | npt.NDArray[np.uint8]
    size_wh: tuple[int, int]
    text: str
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        count = self.text.count(REGION)
        if count != len(self.boxes):
            raise DataError(
                f"the question {self.text!r:.80} has {REGION} {count} times, and {len(self.boxes)} boxes are given; "
                f"write {REGION} once for each box"
            )


@dataclass(frozen=True, slots=True)
class Mark:
    """A box that an answer marks behind `text[:end]`, in pixels of the image.

    `sam_tokens` are further prompt tokens for SAM, (K, C) float32, of methods that have them.
    """

    end: int
    box: Box
    sam_tokens: torch.Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """A generated text without the text of its marks, and the marks in their order.

    Marks with equal `end` are several boxes of the same words. `finished` is False if the limit of tokens cut it off.
    """

    text: str
    marks: tuple[Mark, ...] = ()
    finished: bool = True


def ask_text(
    method: Method, engine: Engine, questions: Sequence[TextQuestion], max_new_tokens: int
) -> list[TextAnswer]:
    """Return the model's answers in text, in the order of the questions.

    Args:
        method: The method whose form of marks the model was trained on.
        engine: The engine; its answers must not be constrained to the method's form.
        questions: The questions.
        max_new_tokens: The length limit of an answer.

    Raises:
        ModelError: The method marks locations and the engine does not decode them, or it has no form of marks.
    """
    conversations = [
        inference_conversation(each.image, region_text(method, each.text, each.boxes, each.size_wh))
        for each in questions
    ]
    if method.needs_locations:
        replies = require_locating_engine(engine).generate_located(conversations, max_new_tokens)
    else:
        replies = engine.generate(conversations, max_new_tokens)
    return [parse_text(method, reply, each.size_wh) for reply, each in zip(replies, questions, strict=True)]


def region_text(method: Method, text: str, boxes: Sequence[Box], size_wh: tuple[int, int]) -> str | LocatedText:
    """Return a question with each `REGION` replaced by the method's form of its box.

    Args:
        method: The method.
        text: The question, with `REGION` once for each box.
        boxes: The boxes in pixels of the image.
        size_wh: The image's size in pixels.

    Raises:
        ValueError: As many boxes as regions are needed.

    Examples:
        >>> from sam4mllm.methods.ppg import Ppg
        >>> region_text(Ppg(0, 0, grid=1000, phrases=5), "What is at <region>?", [Box(10, 10, 30, 30)], (100, 50))
        'What is at [100,200,300,600]?'
    """
    parts = text.split(REGION)
    if len(parts) != len(boxes) + 1:
        raise ValueError(f"{text!r:.80} has {len(parts) - 1} regions; got {len(boxes)} boxes")
    ends = accumulate(map(len, parts[:-1]))
    regions = [(end, [MaskObject("", None, box)]) for end, box in zip(ends, boxes, strict=True)]
    return _written(method, "".join(parts), regions, size_wh, space="")


def mark_text(
    method: Method, text: str, mentions: Iterable[tuple[int, Sequence[MaskObject]]], size_wh: tuple[int, int]
) -> str | LocatedText:
    """Return an answer that marks the objects of each mention behind its words.

    Args:
        method: The method.
        text: The answer without marks.
        mentions: (position in the text behind the words, objects), in the order of the text; the objects are written in
            reading order.
        size_wh: The image's size in pixels.

    Examples:
        >>> from sam4mllm.methods.ppg import Ppg
        >>> ring = MaskObject("ring", None, Box(10, 10, 30, 30))
        >>> mark_text(Ppg(0, 0, grid=1000, phrases=5), "A red ring.", [(10, [ring])], (100, 50))
        'A red ring [100,200,300,600].'
    """
    ordered = [(end, objects_in_reading_order(objects)) for end, objects in mentions]
    return _written(method, text, ordered, size_wh, space=" ")


def parse_text(method: Method, reply: Reply, size_wh: tuple[int, int]) -> TextAnswer:
    """Take the marks out of a generated text about an image of `size_wh` pixels.

    Boxes with numbers beyond the grid stay in the text. White space before a mark is removed with it, and so are spaces
    and semicolons between two marks.

    Examples:
        >>> from sam4mllm.methods.ppg import Ppg
        >>> answer = parse_text(Ppg(0, 0, grid=1000, phrases=5), Reply("A red ring [100,200,300,600]."), (1000, 1000))
        >>> answer.text, answer.marks[0].end, answer.marks[0].box
        ('A red ring.', 10, Box(x1=100.5, y1=200.5, x2=300.5, y2=600.5))
    """
    text, position = "", 0
    marks: list[Mark] = []
    for found in _found(method, reply, size_wh):
        before = reply.text[position : found.start]
        if not (marks and _BETWEEN_MARKS.fullmatch(before)):
            text = (text + before).rstrip() if text or before.strip() else ""
        marks.append(Mark(len(text), found.box, found.sam_tokens))
        position = found.end
    text = (text + reply.text[position:]).rstrip()
    removed = len(text) - len(text.lstrip())
    moved = tuple(Mark(max(mark.end - removed, 0), mark.box, mark.sam_tokens) for mark in marks)
    return TextAnswer(text.lstrip(), moved, reply.finished)


class _Found(NamedTuple):
    """A mark in a generated text, from `start` to `end`; the box is in pixels."""

    start: int
    end: int
    box: Box
    sam_tokens: torch.Tensor | None


@runtime_checkable
class _WritesBoxes(Protocol):
    """A method that writes boxes as text."""

    @property
    def grammar(self) -> AnswerGrammar:
        """The grammar of its answers."""
        ...


def _found(method: Method, reply: Reply, size_wh: tuple[int, int]) -> list[_Found]:
    if method.needs_locations:
        return [
            _Found(each.end - len(LOCATION_TOKEN), each.end, each.box.from_shares(size_wh), each.sam_tokens)
            for each in reply.locations
        ]
    grammar = _grammar(method)
    found = []
    for match in grammar.box_pattern.finditer(reply.text):
        answer = grammar.parse(match.group(), size_wh)
        if answer.prompts and answer.prompts[0].box is not None:
            found.append(_Found(*match.span(), answer.prompts[0].box, None))
    return found


def _written(
    method: Method,
    text: str,
    mentions: Sequence[tuple[int, Sequence[MaskObject]]],
    size_wh: tuple[int, int],
    space: str,
) -> str | LocatedText:
    """Return the text with the marks of objects inserted at positions; text of boxes begins with `space`."""
    written, locations, position = "", [], 0
    for end, objects in mentions:
        written += text[position:end]
        position = end
        if method.needs_locations:
            for item in objects:
                locations.append(Location(item.box.to_shares(size_wh), len(written), item.rle))
                written += LOCATION_TOKEN
        elif objects:
            written += space + _grammar(method).write([SamPrompt(item.box) for item in objects], size_wh)
    written += text[position:]
    return LocatedText(written, tuple(locations)) if locations else written


def _grammar(method: Method) -> AnswerGrammar:
    if not isinstance(method, _WritesBoxes):
        raise ModelError(
            f"the method {method.name} has no form of boxes in text, so it neither asks nor answers by them"
        )
    return method.grammar
