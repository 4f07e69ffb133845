"""Correction of an answer by points on the image: only the segmenter runs again.

The objects of an answer begin with the masks that the model's prompts gave. A point is added to the prompt of one
object, whose mask is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sam4mllm.app.answers import Mask, draw, legend_entry
from sam4mllm.data.images import Rgb
from sam4mllm.errors import DataError
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.pipeline.result import Result

Segment = Callable[[SamPrompt], Mask]
"""Returns the mask (H, W) of a prompt in pixels of the image."""


@dataclass(frozen=True, slots=True)
class EditedObject:
    """An object of a corrected answer: its box, points and mask (H, W); no mask before an added object has a prompt."""

    box: Box | None
    points: tuple[Point, ...]
    mask: Mask | None

    @property
    def prompt(self) -> SamPrompt | None:
        """The prompt of box and points; None without a positive point or a box."""
        positive = any(point.label == POSITIVE for point in self.points)
        return SamPrompt(self.box, self.points) if self.box is not None or positive else None


class Correction:
    """An answer to a phrase that is being corrected.

    Args:
        image: (H, W, 3) uint8 RGB.
        phrase: The phrase.
        result: The answer.
        segment: Segments a prompt about the image.
        most_points: The limit of the points of an object.

    Attributes:
        objects: The objects.
        drawn_wh: Width and height of the drawing in pixels.
    """

    def __init__(self, image: Rgb, phrase: str, result: Result, segment: Segment, most_points: int) -> None:
        self.image = image
        self.phrase = phrase
        self._segment = segment
        self._most_points = most_points
        masks = result.masks.cpu().numpy()
        self.objects = [
            EditedObject(prompt.box, prompt.points, mask) for prompt, mask in zip(result.prompts, masks, strict=True)
        ]
        self._history: list[list[EditedObject]] = []
        self.drawn_wh = draw(image, [], []).size

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        height, width = self.image.shape[:2]
        return width, height

    def click(self, index: int, column: int, row: int, positive: bool) -> None:
        """Add a point to an object: the center of the pixel (column, row) of the drawing, which may be scaled.

        Raises:
            DataError: There is no such object, the pixel is not in the drawing, or the object has too many points.
        """
        width, height = self.drawn_wh
        if not (0 <= column < width and 0 <= row < height):
            raise DataError(f"the point ({column}, {row}) is not in the drawing of {width} x {height} pixels")
        edited = self._object(index)
        if len(edited.points) >= self._most_points:
            raise DataError(f"object {index + 1} has {len(edited.points)} points, the most that are allowed")
        x, y = Grid(self.drawn_wh).to_pixels(column, row, self.size_wh)
        point = Point(x, y, POSITIVE if positive else NEGATIVE)
        self._replace(index, replace(edited, points=(*edited.points, point)))

    def remove_box(self, index: int) -> None:
        """Segment an object by its points alone.

        Raises:
            DataError: There is no such object.
        """
        self._replace(index, replace(self._object(index), box=None))

    def remove_points(self, index: int) -> None:
        """Segment an object by its box alone; an object without a box has no mask until the next point.

        Raises:
            DataError: There is no such object.
        """
        self._replace(index, replace(self._object(index), points=()))

    def add_object(self) -> int:
        """Add an object without a prompt, and return its index."""
        self._remember()
        self.objects.append(EditedObject(None, (), None))
        return len(self.objects) - 1

    def remove_object(self, index: int) -> None:
        """Remove an object.

        Raises:
            DataError: There is no such object.
        """
        self._object(index)
        self._remember()
        del self.objects[index]

    def undo(self) -> None:
        """Take the last change back; does nothing if there is none."""
        if self._history:
            self.objects = self._history.pop()

    def masks(self) -> list[Mask]:
        """Return the masks (H, W) of the objects that have a pixel."""
        return [each.mask for each in self.objects if each.mask is not None and each.mask.any()]

    def draw(self) -> Image.Image:
        """Draw the objects over the image; object i has the color `PALETTE[i]`."""
        nothing = np.zeros(self.image.shape[:2], dtype=bool)
        masks = [nothing if each.mask is None else each.mask for each in self.objects]
        return draw(self.image, masks, [_shown(each) for each in self.objects])

    def legend(self) -> str:
        """Return the legend of the drawing as HTML."""
        if not self.objects:
            return "no object"
        notes = ["" if each.mask is not None else ": click on it" for each in self.objects]
        return "<br>".join(
            legend_entry(str(number), f"{self.phrase}{note}", "") for number, note in enumerate(notes, start=1)
        )

    def _object(self, index: int) -> EditedObject:
        if not 0 <= index < len(self.objects):
            raise DataError(f"there is no object {index + 1}; the answer has {len(self.objects)}; add one first")
        return self.objects[index]

    def _replace(self, index: int, edited: EditedObject) -> None:
        prompt = edited.prompt
        mask = None if prompt is None else self._segment(prompt)
        self._remember()
        self.objects[index] = replace(edited, mask=mask)

    def _remember(self) -> None:
        self._history.append(list(self.objects))
        # Enough for a user; masks of a large image take megabytes.
        del self._history[:-20]


def _shown(edited: EditedObject) -> SamPrompt | None:
    """Return all that an object has, also negative points alone, which are no prompt; None if it has nothing."""
    return SamPrompt(edited.box, edited.points) if edited.box is not None or edited.points else None
