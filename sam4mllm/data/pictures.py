"""What a picture's file says before its pixels: its size, and how it is turned to be seen.

This module knows no data set.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.Image import Transpose

# EXIF's tag for how a camera was held, and what each of its values asks for.
_ORIENTATION = 0x0112
_UPRIGHT = 1
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)


def known_size_wh(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels as the picture is meant to be seen (EXIF applied); None for no file or no picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = turn_of(image) in _ON_ITS_SIDE
    # A damaged picture may raise nearly anything: Pillow's decoders have no error of their own.
    except Exception:
        return None
    return (height, width) if turned else (width, height)


def turn_of(image: Image.Image) -> Transpose | None:
    """What brings a picture, opened and not yet decoded, upright; None where it is, or where Pillow will do it."""
    # Pillow turns a TIFF while it decodes, and tells its size as turned from the beginning.
    if image.format == "TIFF":
        return None
    return _TURNS.get(image.getexif().get(_ORIENTATION, _UPRIGHT))
