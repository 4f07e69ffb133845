"""Drawings of masks, boxes and points over an image, of images side by side with captions, and of contact sheets.

Images are enlarged by an integer factor without interpolation, so each pixel of a mask is visible as it was computed.
Everything is drawn with PIL: `torchvision.utils.draw_*` draws neither outlines of masks nor crosses, and would import
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sam4mllm.geometry import POSITIVE, Point, SamPrompt
from sam4mllm.utils.atomic_io import atomic_path

Mask = npt.NDArray[np.bool_]
Rgb = npt.NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)

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
"""RGB of object 0, 1, ...: Okabe and Ito's colors for color-blind readers, then three of matplotlib's."""
POSITIVE_COLOR = (40, 200, 60)
NEGATIVE_COLOR = (225, 30, 40)
_PAPER = (255, 255, 255)
_INK = (25, 25, 25)
_GAP = 8
_FONT_SIZE = 13
_LINE_HEIGHT = 18


def save_image(image: Image.Image, file: Path) -> None:
    """Write an image to `file` atomically, in the format that its suffix names."""
    with atomic_path(file) as unfinished:
        image.save(unfinished, format=Image.registered_extensions()[file.suffix.lower()])


def overlay(
    image: Rgb,
    masks: Sequence[Mask] = (),
    prompts: Sequence[SamPrompt] = (),
    *,
    opacity: float = 0.5,
    long_side: int = 0,
) -> Image.Image:
    """Draw masks, boxes and points over an image; object i has the color `PALETTE[i]`.

    Masks are tinted and outlined. A positive point is a green dot, a negative one a red cross, both with white borders.

    Args:
        image: (H, W, 3) uint8, RGB.
        masks: Boolean arrays (H, W).
        prompts: Boxes and points in pixels of the image.
        opacity: Opacity of the tint, from 0 to 1.
        long_side: The drawing is enlarged by the smallest integer factor that gives its longer side at least this many
            pixels; 0 for no enlargement.

    Raises:
        ValueError: A mask has another size than the image.
    """
    height, width = image.shape[:2]
    for mask in masks:
        if mask.shape != (height, width):
            raise ValueError(f"a mask must have its image's size (H, W) = {(height, width)}; got {mask.shape}")
    factor = max(-(-long_side // max(height, width)), 1)
    canvas = _enlarge(image, factor).astype(np.float32)
    for index, mask in enumerate(masks):
        large = _enlarge(mask, factor)
        color = np.array(PALETTE[index % len(PALETTE)], dtype=np.float32)
        canvas[large] = (1 - opacity) * canvas[large] + opacity * color
        canvas[_outline(large)] = color
    drawing = Image.fromarray(canvas.round().astype(np.uint8))
    stroke = max(1, round(max(drawing.size) / 300))
    for index, prompt in enumerate(prompts):
        _draw_prompt(ImageDraw.Draw(drawing), prompt, PALETTE[index % len(PALETTE)], factor, stroke)
    return drawing


def panels(parts: Sequence[tuple[Image.Image, str]], caption: str = "") -> Image.Image:
    """Paste images side by side on white, with a title above each and a caption below all; long text is wrapped.

    Raises:
        ValueError: There are no images.
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
    """Paste images on one white sheet, `columns` per row, in reading order.

    Raises:
        ValueError: There are no images, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns; got {len(images)} images and {columns} columns")
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    cell_width = max(image.width for image in images)
    heights = [max(image.height for image in row) for row in rows]
    used_columns = min(columns, len(images))
    size_wh = (used_columns * (cell_width + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size_wh, _PAPER)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (_GAP + column * (cell_width + _GAP), y))
        y += height + _GAP
    return sheet


def mask_image(mask: Mask) -> Image.Image:
    """Return a mask (H, W) as an 8-bit grayscale image: 255 on the object and 0 off it."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _enlarge(array: npt.NDArray[Scalar], factor: int) -> npt.NDArray[Scalar]:
    """Repeat each pixel `factor` times in both directions."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(mask: Mask) -> Mask:
    """Return the mask's pixels that share an edge with a pixel off the mask or with the border of the image."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _draw_prompt(
    pen: ImageDraw.ImageDraw, prompt: SamPrompt, color: tuple[int, int, int], factor: int, stroke: int
) -> None:
    if prompt.box is not None:
        x1, y1, x2, y2 = (round(value * factor) for value in prompt.box)
        # x2 and y2 are exclusive, PIL's corners inclusive.
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color, width=stroke)
    for point in prompt.points:
        _draw_point(pen, point, factor, 3 * stroke + 1)


def _draw_point(pen: ImageDraw.ImageDraw, point: Point, factor: int, radius: int) -> None:
    x, y = point.x * factor, point.y * factor
    ring = (x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1)
    if point.label == POSITIVE:
        pen.ellipse(ring, fill=POSITIVE_COLOR, outline=_PAPER, width=1)
        return
    length, width = radius * 0.8, max(2, radius // 2)
    for arm, thickness, color in ((length + 1.5, width + 3, _PAPER), (length, width, NEGATIVE_COLOR)):
        pen.line((x - arm, y - arm, x + arm, y + arm), fill=color, width=thickness)
        pen.line((x - arm, y + arm, x + arm, y - arm), fill=color, width=thickness)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)


def _text_height(lines: Sequence[str]) -> int:
    return _LINE_HEIGHT * len(lines) + _GAP // 2 if lines else 0


def _write(pen: ImageDraw.ImageDraw, corner_xy: tuple[int, int], lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        pen.text((corner_xy[0], corner_xy[1] + index * _LINE_HEIGHT), line, fill=_INK, font=_font())


def _wrap(text: str, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels: at spaces, and inside words that are longer than a line."""
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
