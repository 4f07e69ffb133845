"""What an image's file says before its pixels: its size, and how it is turned to be seen.

This module decodes no pixels and knows no data set.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.Image import Transpose
from PIL.PngImagePlugin import PngImageFile

from sam4mllm.data.fields import file_exists

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

# A PNG is 8 bytes, then chunks: length and kind, the content, 4 bytes that check it.
_PNG_SIGNATURE = 8
_CHUNK_HEAD = struct.Struct(">I4s")
_CHUNK_END = 4


def known_size_wh(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels as the image is meant to be seen (EXIF applied); None for no file or no image."""
    if not file_exists(path):
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = turn_of(image) in _ON_ITS_SIDE
    # A damaged image may raise nearly anything: Pillow's decoders have no error of their own.
    except Exception:
        return None
    return (height, width) if turned else (width, height)


def turn_of(image: Image.Image) -> Transpose | None:
    """What brings an image, opened and not yet decoded, upright; None where it is, or where Pillow will do it."""
    # Pillow turns a TIFF while it decodes, and tells its size as turned from the beginning.
    if image.format == "TIFF":
        return None
    if not isinstance(image, PngImageFile):
        return _TURNS.get(image.getexif().get(_ORIENTATION, _UPRIGHT))
    # EXIF may stand behind a PNG's pixels, so its own getexif decodes them all to see.
    if "exif" not in image.info and image.fp is not None and (late := _exif_chunk(image.fp)):
        image.info["exif"] = late
    return _TURNS.get(Image.Image.getexif(image).get(_ORIENTATION, _UPRIGHT))


def _exif_chunk(file: IO[bytes]) -> bytes | None:
    """The EXIF of a PNG, found by going from chunk to chunk; None where it has none. The file's place stays."""
    place = file.tell()
    file.seek(_PNG_SIGNATURE)
    found = None
    while found is None and len(head := file.read(_CHUNK_HEAD.size)) == _CHUNK_HEAD.size:
        length, kind = _CHUNK_HEAD.unpack(head)
        if kind == b"eXIf":
            found = file.read(length)
        else:
            file.seek(length + _CHUNK_END, os.SEEK_CUR)
    file.seek(place)
    return found
