"""Image input: a path, a PIL image or an array becomes an RGB array; and an image file's size without decoding it.

Files are rotated and mirrored according to their EXIF orientation; PIL images and arrays are used as they are.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.PngImagePlugin import PngImageFile

from sam4mllm.data.image_sources import ImageSource, StoredImage
from sam4mllm.data.records import file_exists
from sam4mllm.errors import DataError

Used = TypeVar("Used")
Rgb: TypeAlias = npt.NDArray[np.uint8]
ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | Rgb"

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""The suffixes, in lower case, by which image files are found in folders and addresses."""

_USUAL_FORMATS = ("JPEG", "PNG")

# EXIF's orientation tag, and the transposition that corrects each of its values.
_ORIENTATION = 0x0112
_UPRIGHT = 1
_TRANSPOSES = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SWAPS_SIDES = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)

# A PNG is 8 bytes, then chunks: length and type, the content, and a checksum of 4 bytes.
_PNG_SIGNATURE = 8
_CHUNK_HEAD = struct.Struct(">I4s")
_CHUNK_CHECKSUM = 4


def image_key(image: ImageInput | None) -> object:
    """Return what identifies an image without opening it: the path of a file, the identity of an object in memory."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)


def load_image(path: str | os.PathLike[str] | StoredImage) -> Rgb:
    """Load an image file as RGB (H, W, 3) uint8, with its EXIF orientation applied.

    Raises:
        DataError: No such file; not an image, a damaged one, one that is too large, or one with 32 bits per pixel.
    """
    if isinstance(path, StoredImage):
        return decode_image(path.read(), path)
    file = Path(path)
    return _opened(file, file, _decoded)


def decode_image(content: bytes, name: ImageSource) -> Rgb:
    """Decode the bytes of an image file as `load_image` does; `name` is its name in errors.

    Raises:
        DataError: As `load_image`.
    """
    return _opened(BytesIO(content), name, _decoded)


def _decoded(image: Image.Image) -> Rgb:
    transpose = _transpose_of(image)
    image.load()
    # Not by ImageOps.exif_transpose: it writes all EXIF data again, and fails for malformed EXIF data.
    return to_rgb(image if transpose is None else image.transpose(transpose))


def check_image(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Check that `load_image` can load an image file, and return its width and height as `known_size_wh` does.

    All data are decoded, but a JPEG at an eighth of its size, which is faster.

    Raises:
        DataError: As `load_image`.
    """

    def check(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        transpose = _transpose_of(image)
        if image.format == "JPEG":
            image.draft(image.mode, (width // 8, height // 8))
        image.load()
        if image.format != "JPEG":
            to_rgb(image)
        return (height, width) if transpose in _SWAPS_SIDES else (width, height)

    file = Path(path)
    return _opened(file, file, check)


def open_image(source: Path | IO[bytes]) -> Image.Image:
    """Open an image file of any format that Pillow decodes itself; for EPS it would run Ghostscript."""
    Image.init()
    # Pillow tries the formats in this order; in its own, slower ones come before JPEG and PNG.
    others = [name for name in Image.ID if name not in ("EPS", *_USUAL_FORMATS)]
    return Image.open(source, formats=[*_USUAL_FORMATS, *others])


def _opened(source: Path | IO[bytes], name: ImageSource, use: Callable[[Image.Image], Used]) -> Used:
    """Open an image file and return what `use` returns for it; every error is a DataError with the file's name."""
    if isinstance(source, Path) and not file_exists(source):
        raise DataError(f"{name}: no such file; an image was expected", "image")
    try:
        with open_image(source) as image:
            return use(image)
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read (JPEG, PNG, WebP, ...)", "image") from None
    except Image.DecompressionBombError as error:
        raise _too_large(name, error) from error
    except DataError as error:
        raise DataError(f"{name}: {error}", "image") from error
    # A damaged image may raise nearly anything: Pillow's decoders have no exception type of their own.
    except Exception as error:
        raise DataError(f"{name}: the image is damaged: {error}", "image") from error


def to_rgb(image: Image.Image) -> Rgb:
    """Convert a PIL image to RGB (H, W, 3) uint8; transparent pixels become white, 16 bits are reduced to 8.

    Raises:
        DataError: Pixels of 32 bits, as in some TIFF files: which values are black and white is unknown.
    """
    # Pillow reads the 16 bits of PGM into 32, from 0 to 65535 whatever the file's maximum is.
    if image.mode == "I" and image.format in ("PPM", "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(
            f"the image has pixels of 32 bits (Pillow's mode {image.mode}), and which values are black and white is "
            "unknown; convert it to 8 bits per channel"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def as_rgb(image: ImageInput) -> Rgb:
    """Return RGB (H, W, 3) uint8 of a path, a PIL image, or such an array itself.

    Raises:
        DataError: A file that is not an image; an array of another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"an image array is (H, W, 3) uint8, RGB; got {image.shape} {image.dtype}")
        return image
    return load_image(image)


def size_wh_of(image: ImageInput) -> tuple[int, int] | None:
    """Return an image's width and height in pixels, a file's as `known_size_wh` does; None if that does.

    Raises:
        DataError: An array of another shape or dtype than `as_rgb` takes; a file whose image is too large.
    """
    if isinstance(image, Image.Image):
        return image.size
    if isinstance(image, np.ndarray):
        height, width = as_rgb(image).shape[:2]
        return width, height
    return known_size_wh(Path(image))


def known_size_wh(path: Path) -> tuple[int, int] | None:
    """Return an image file's width and height in pixels, with its EXIF orientation applied, without decoding it.

    None if there is no such file, or if it cannot be opened as an image.

    Raises:
        DataError: The image is too large.
    """
    if not file_exists(path):
        return None
    try:
        with open_image(path) as image:
            width, height = image.size
            swapped = _transpose_of(image) in _SWAPS_SIDES
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from error
    # A damaged image may raise nearly anything: Pillow's decoders have no exception type of their own.
    except Exception:
        return None
    return (height, width) if swapped else (width, height)


def size_mismatch(path: Path, annotated_wh: tuple[int, int], on_disk_wh: tuple[int, int]) -> str:
    """Return the end of an error about an image annotated at another size than its file has, from the size on."""
    problem = f"{annotated_wh}, but {path} is {on_disk_wh} (width, height)"
    if annotated_wh == on_disk_wh[::-1] and _stored_size_wh(path) == annotated_wh:
        return (
            f"{problem} after its EXIF orientation, which is applied on loading; give the size and the coordinates of "
            "the image as it is displayed"
        )
    return f"{problem}; use the images that the annotations were made on"


def _stored_size_wh(path: Path) -> tuple[int, int]:
    with open_image(path) as image:
        return image.size


def _too_large(name: ImageSource, error: Image.DecompressionBombError) -> DataError:
    """Return the error about an image of more pixels than Pillow opens; Pillow reports the count and its limit."""
    pixels, limit = re.findall(r"\d+", str(error))[:2]
    return DataError(
        f"{name}: the image is too large: {pixels} pixels, and at most {limit} are supported; reduce or crop it, and "
        "its annotations with it",
        "image",
    )


def _transpose_of(image: Image.Image) -> Transpose | None:
    """Return the transposition that corrects the EXIF orientation of an opened, not yet decoded image; None for none.

    None also if Pillow applies it while decoding.
    """
    # Pillow applies a TIFF's orientation while decoding, and reports the size after it from the beginning.
    if image.format == "TIFF":
        return None
    if not isinstance(image, PngImageFile):
        return _TRANSPOSES.get(image.getexif().get(_ORIENTATION, _UPRIGHT))
    # EXIF data may follow a PNG's pixels, so its own getexif decodes all of them.
    if "exif" not in image.info and image.fp is not None and (late := _exif_chunk(image.fp)):
        image.info["exif"] = late
    return _TRANSPOSES.get(Image.Image.getexif(image).get(_ORIENTATION, _UPRIGHT))


def _exif_chunk(file: IO[bytes]) -> bytes | None:
    """Find the EXIF data of a PNG by skipping from chunk to chunk; None if it has none. The file position is kept."""
    position = file.tell()
    file.seek(_PNG_SIGNATURE)
    exif = None
    while exif is None and len(head := file.read(_CHUNK_HEAD.size)) == _CHUNK_HEAD.size:
        length, kind = _CHUNK_HEAD.unpack(head)
        if kind == b"eXIf":
            exif = file.read(length)
        else:
            file.seek(length + _CHUNK_CHECKSUM, os.SEEK_CUR)
    file.seek(position)
    return exif
