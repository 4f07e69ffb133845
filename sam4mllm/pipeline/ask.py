"""Questions about an image that are answered in text, and the boxes and masks of what the answer marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sam4mllm.data.images import ImageInput, Rgb, as_rgb
from sam4mllm.data.masks import encode
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.base import Answer, Method
from sam4mllm.methods.text import Mark, TextAnswer, TextQuestion

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class TextResult:
    """An answer in text about an image, with the masks of the boxes that it marks.

    Attributes:
        answer: The generated text without its marks.
        marks: The boxes that the answer marks, each behind some of its words; often none.
        masks: (N, H, W) bool, SAM's mask of each mark, at the image's size, on the pipeline's device.
        finished: False if the limit of tokens cut the answer off.
    """

    answer: str
    marks: tuple[Mark, ...]
    masks: torch.Tensor
    finished: bool

    def numbered(self) -> str:
        """Return the answer with the number of each mark behind its words: "A red ring [1] on two stars [2][3]."."""
        text, position, last_end = "", 0, None
        for number, mark in enumerate(self.marks, start=1):
            text += self.answer[position : mark.end] + ("" if mark.end == last_end else " ") + f"[{number}]"
            position = last_end = mark.end
        return (text + self.answer[position:]).strip()

    def to_json(self) -> dict[str, Any]:
        """Return the answer, and its marks with their boxes, in pixels, and masks."""
        return {
            "answer": self.answer,
            "marks": [
                {"end": mark.end, "box_xyxy": [float(value) for value in mark.box], "segmentation": encode(mask)}
                for mark, mask in zip(self.marks, self.masks.cpu().numpy(), strict=True)
            ],
            "finished": self.finished,
        }

    def draw(self, image: ImageInput, regions: Sequence[Box] = (), long_side: int = 0) -> Image.Image:
        """Draw masks and boxes of the marks over the image, then the boxes of the question's `regions`."""
        from sam4mllm.viz.drawing import overlay

        boxes = [*(mark.box for mark in self.marks), *regions]
        masks = list(self.masks.cpu().numpy())
        return overlay(as_rgb(image), masks, [SamPrompt(box) for box in boxes], long_side=long_side)


def question_about(image: Rgb, text: str, boxes: Sequence[Box]) -> TextQuestion:
    """Return a question about an image (H, W, 3), after checks of its text and its regions, in pixels.

    Raises:
        DataError: The question is empty, a box is not a part of the image with an extent, or the text has another
            number of `<region>` than there are boxes.
    """
    if not text.strip():
        raise DataError("the question is empty; ask something, such as 'What is at <region>?' with a box")
    height, width = image.shape[:2]
    for box in boxes:
        is_inside = 0 <= box.x1 < box.x2 <= width and 0 <= box.y1 < box.y2 <= height
        if not (all(map(math.isfinite, box)) and is_inside):
            raise DataError(
                f"the box {','.join(f'{value:g}' for value in box)} is not x1,y1,x2,y2 with x1 < x2 and y1 < y2 in an "
                f"image of {width} x {height} pixels; correct it"
            )
    return TextQuestion(image, (width, height), text, tuple(boxes))


def answer_of_marks(method: Method, answer: TextAnswer) -> Answer:
    """Return what `Pipeline.segment` takes for the marks of an answer, prompted as the method prompts SAM."""
    tokens = tuple(mark.sam_tokens for mark in answer.marks if mark.sam_tokens is not None)
    return Answer(
        "ok",
        tuple(SamPrompt(mark.box) for mark in answer.marks),
        answer.text,
        sam_tokens=tokens if method.needs_prompt_tokens else (),
        tokens_alone=method.tokens_alone,
    )
