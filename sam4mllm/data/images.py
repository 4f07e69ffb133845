"""Images where they enter: a path, a PIL image or an array becomes one RGB array, or an error says why not.

This module knows nothing about models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sam4mllm.data.fields import file_exists
from sam4mllm.data.image_header import turn_of
from sam4mllm.errors import DataError

Rgb: TypeAlias = npt.NDArray[np.uint8]
ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | Rgb"


def load_image(path: str | os.PathLike[str]) -> Rgb:
    """The image in a file as it is meant to be seen: RGB (H, W, 3) uint8, turned as its EXIF tag says.

    Raises:
        DataError: no such file, no image, or an image that is cut short.
    """
    place = Path(path)
    if not file_exists(place):
        raise DataError(f"{place}: no such file; an image was expected")
    try:
        with Image.open(place) as image:
            turn = turn_of(image)
            image.load()
            # Turned here, not by ImageOps.exif_transpose: that writes all EXIF anew, and odd EXIF cannot be written.
            return to_rgb(image if turn is None else image.transpose(turn))
    except UnidentifiedImageError:
        raise DataError(f"{place}: not an image that can be read (JPEG, PNG, WebP, ...)") from None
    # A damaged image may raise nearly anything: Pillow's decoders have no error of their own.
    except Exception as error:
        raise DataError(f"{place}: the image is damaged: {error}") from error


def to_rgb(image: Image.Image) -> Rgb:
    """RGB (H, W, 3) uint8 of a PIL image; transparent pixels are laid over white, 16 bits are brought down to 8."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def as_rgb(image: ImageInput) -> Rgb:
    """RGB (H, W, 3) uint8 of whatever a caller holds: a path, a PIL image, or such an array already.

    Raises:
        DataError: a file that is no image; an array of another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"an image array is (H, W, 3) uint8, RGB; got {image.shape} {image.dtype}")
        return image
    return load_image(image)
