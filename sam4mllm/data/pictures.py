"""The size of a picture on disk, from its header alone. This module reads no pixels and knows no data set."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

# EXIF's tag for how a camera was held, and its values that swap width and height.
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


def known_size_wh(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels as the picture is meant to be seen (EXIF applied); None for no file or no picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return (height, width) if turned else (width, height)
