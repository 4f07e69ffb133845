"""Images of anything on the way: masks, boxes and points over an image, panels side by side, sheets of many.

Everything is drawn with PIL at a whole multiple of the image's own pixels, so what is seen is what was computed. This
module knows nothing about models, data sets or text formats; masks come as bool arrays, prompts as SamPrompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sam4mllm.geometry import POSITIVE, Point, SamPrompt

Mask = npt.NDArray[np.bool_]
Rgb = npt.NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)

# Ten hues that stay apart on a screen and in print, and for most colour-blind readers while there are few objects.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (148, 103, 189),
    (140, 86, 75),
    (127, 127, 127),
)
POSITIVE_COLOUR = (40, 200, 60)
NEGATIVE_COLOUR = (225, 30, 40)
_PAPER = (255, 255, 255)
_INK = (25, 25, 25)
_GAP = 8
_FONT_SIZE = 13
_LINE_HEIGHT = 18


def overlay(
    image: Rgb,
    masks: Sequence[Mask] = (),
    prompts: Sequence[SamPrompt] = (),
    *,
    opacity: float = 0.5,
    long_side: int = 0,
) -> Image.Image:
    """The image with each mask tinted and outlined, each prompt's box and points drawn; object i has PALETTE's hue i.

    A positive point is a green dot, a negative one a red cross, each ringed in white.

    Args:
        image: (H, W, 3) uint8, RGB.
        masks: bool arrays (H, W).
        prompts: in pixels of the image.
        opacity: of the tint, 0 to 1.
        long_side: the drawing is enlarged by the smallest whole factor that brings its longer side to this many pixels.

    Raises:
        ValueError: a mask that is not of the image's size.
    """
    height, width = image.shape[:2]
    for mask in masks:
        if mask.shape != (height, width):
            raise ValueError(f"a mask is of its image's size (H, W) = {(height, width)}; got {mask.shape}")
    factor = max(-(-long_side // max(height, width)), 1)
    canvas = _enlarge(image, factor).astype(np.float32)
    for index, mask in enumerate(masks):
        large = _enlarge(mask, factor)
        colour = np.array(PALETTE[index % len(PALETTE)], dtype=np.float32)
        canvas[large] = (1 - opacity) * canvas[large] + opacity * colour
        canvas[_outline(large)] = colour
    drawing = Image.fromarray(canvas.round().astype(np.uint8))
    stroke = max(1, round(max(drawing.size) / 400))
    for index, prompt in enumerate(prompts):
        _draw_prompt(ImageDraw.Draw(drawing), prompt, PALETTE[index % len(PALETTE)], factor, stroke)
    return drawing


def panels(parts: Sequence[tuple[Image.Image, str]], caption: str = "") -> Image.Image:
    """Images side by side, a title above each and a caption below all, on white.

    Raises:
        ValueError: no part.
    """
    if not parts:
        raise ValueError("panels need at least one image")
    width = sum(image.width for image, _ in parts) + _GAP * (len(parts) + 1)
    titles = [_wrap(title, image.width) for image, title in parts]
    below = _wrap(caption, width - 2 * _GAP)
    top = max(_text_height(lines) for lines in titles)
    tallest = max(image.height for image, _ in parts)
    page = Image.new("RGB", (width, 2 * _GAP + top + tallest + _text_height(below)), _PAPER)
    pen = ImageDraw.Draw(page)
    x = _GAP
    for (image, _), lines in zip(parts, titles, strict=True):
        _write(pen, (x, _GAP // 2), lines)
        page.paste(image, (x, _GAP + top))
        x += image.width + _GAP
    _write(pen, (_GAP, _GAP + top + tallest + _GAP // 2), below)
    return page


def contact_sheet(images: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Many images on one white sheet, `columns` a row, in reading order.

    Raises:
        ValueError: no image, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns; got {len(images)} images, {columns} columns")
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    cell_width = max(image.width for image in images)
    heights = [max(image.height for image in row) for row in rows]
    across = min(columns, len(images))
    sheet = Image.new("RGB", (across * (cell_width + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (_GAP + column * (cell_width + _GAP), y))
        y += height + _GAP
    return sheet


def mask_image(mask: Mask) -> Image.Image:
    """The mask alone: 8 bit grey, 255 on the object and 0 off it, at the image's size."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _enlarge(array: npt.NDArray[Scalar], factor: int) -> npt.NDArray[Scalar]:
    """Each pixel repeated `factor` times across and down."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(mask: Mask) -> Mask:
    """The mask's pixels that touch, by an edge, a pixel off it or the border of the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _draw_prompt(
    pen: ImageDraw.ImageDraw, prompt: SamPrompt, colour: tuple[int, int, int], factor: int, stroke: int
) -> None:
    if prompt.box is not None:
        x1, y1, x2, y2 = (round(value * factor) for value in prompt.box)
        # A box's far sides are exclusive: the last pixel inside is one before.
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=stroke)
    for point in prompt.points:
        _draw_point(pen, point, factor, 3 * stroke + 1)


def _draw_point(pen: ImageDraw.ImageDraw, point: Point, factor: int, radius: int) -> None:
    x, y = point.x * factor, point.y * factor
    ring = (x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1)
    if point.label == POSITIVE:
        pen.ellipse(ring, fill=POSITIVE_COLOUR, outline=_PAPER, width=1)
        return
    arm, thick = radius * 0.8, max(2, radius // 2)
    for across, colour in ((thick + 2, _PAPER), (thick, NEGATIVE_COLOUR)):
        pen.line((x - arm, y - arm, x + arm, y + arm), fill=colour, width=across)
        pen.line((x - arm, y + arm, x + arm, y - arm), fill=colour, width=across)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)


def _text_height(lines: Sequence[str]) -> int:
    return _LINE_HEIGHT * len(lines) + _GAP // 2 if lines else 0


def _write(pen: ImageDraw.ImageDraw, place_xy: tuple[int, int], lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        pen.text((place_xy[0], place_xy[1] + index * _LINE_HEIGHT), line, fill=_INK, font=_font())


def _wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces, and inside a word that is too long for a line."""
    font = _font()
    lines: list[str] = []
    for paragraph in text.split("\n") if text else []:
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while len(word) > 1 and font.getlength(word) > width:
                fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines
