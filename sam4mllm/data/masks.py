"""Masks as COCO's RLE (run-length encoding): made of polygons, images and arrays, and decoded to bool arrays.

The mask of several polygons is their union; code that sums them and keeps the pixels equal to 1 loses the overlaps. An
RLE from a file is checked first: pycocotools reads beyond the end of truncated counts.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError
from pycocotools import mask as coco

from sam4mllm.data.images import open_image
from sam4mllm.data.records import file_exists, is_integer, is_number, shorten
from sam4mllm.data.rle_runs import run_array
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

# The largest coordinate, in multiples of the image's longer side: pycocotools allocates memory for every pixel along
# an edge, and does not check that it gets it.
_MAX_RELATIVE_COORDINATE = 10

_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF", "WEBP")
"""Pillow's names of the formats that compress with loss; JPEG 2000 and AVIF may not, but rarely do."""
# A WebP is 12 bytes, then chunks: type and length, and the content, padded to an even length.
_WEBP_HEADER_BYTES = 12
_RIFF_CHUNK = struct.Struct("<4sI")


class Rle(TypedDict):
    """COCO's compressed RLE: `size` is [H, W], `counts` ASCII text; pixels are in column-major order."""

    size: list[int]
    counts: str


def encode(mask: npt.NDArray[np.bool_]) -> Rle:
    """Encode a mask (H, W), bool."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle) -> npt.NDArray[np.bool_]:
    """Decode an RLE to a mask (H, W), bool."""
    mask: npt.NDArray[np.uint8] = coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    return mask.view(np.bool_)


def area(rle: Rle) -> int:
    """Count the pixels of a mask."""
    return _area(rle["size"][0], rle["size"][1], rle["counts"])


# The sentences about one object are read one after the other, and each of their samples needs its area.
@lru_cache(maxsize=16)
def _area(height: int, width: int, counts: str) -> int:
    return int(coco.area({"size": [height, width], "counts": counts.encode("ascii")}))


def tight_box(rle: Rle) -> Box | None:
    """Return the tight box of a mask without decoding it; None for a mask without a pixel."""
    if not area(rle):
        return None
    x, y, width, height = coco.toBbox({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).tolist()
    return Box(x, y, x + width, y + height)


def from_segmentation(segmentation: object, size_hw: tuple[int, int]) -> Rle:
    """Encode COCO's `segmentation` of an image of `size_hw` (H, W) pixels.

    It is a list of polygons [x1, y1, x2, y2, ...] in pixels, whose union is the mask, or an RLE {"size", "counts"} with
    counts compressed (text) or not (a list of integers).

    Raises:
        ValueError: None of these; an RLE of another size than the image's; a polygon of fewer than three points, or
            far outside the image; polygons normalized to the image's size.
    """
    height, width = size_hw
    if isinstance(segmentation, dict):
        rle = check_rle(segmentation)
        if tuple(rle["size"]) != (height, width):
            raise ValueError(f"the mask is {tuple(rle['size'])} (H, W), its image is {(height, width)}")
        return rle
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"a segmentation is a list of polygons or an RLE; got {shorten(segmentation)}")
    highest = -math.inf
    for number, polygon in enumerate(segmentation, start=1):
        if not isinstance(polygon, list) or not _are_numbers(polygon):
            raise ValueError(f"a polygon is a list of finite numbers; got {shorten(polygon)}")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon has three points (six numbers) or more; got {len(polygon)} numbers in polygon {number} of "
                f"{len(segmentation)}; remove that polygon, or the object and the phrases about it"
            )
        high = max(polygon)
        highest = max(highest, high)
        if max(high, -min(polygon)) > _MAX_RELATIVE_COORDINATE * max(size_hw):
            raise ValueError(
                f"a polygon is in pixels of its image, which is {(width, height)} (width, height); "
                f"got {max(polygon, key=abs):g}, which is far outside"
            )
    if highest <= 1 < min(size_hw) and are_normalized([value for polygon in segmentation for value in polygon]):
        raise ValueError(
            f"the polygons are normalized to the image's size (all of their numbers are from 0 to 1); give pixels of "
            f"{(width, height)} (width, height)"
        )
    _check_pixels(height, width)
    parts = coco.frPyObjects(segmentation, height, width)
    merged = coco.merge(parts) if len(parts) > 1 else parts[0]
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def _are_numbers(values: list[Any]) -> bool:
    """Return whether all values are numbers for `is_number`, with fewer steps where all are plain int and float."""
    largest = sys.float_info.max
    # A sum with nan is nan, so minimum and maximum are defined after it; those of integers may be too large for it.
    with suppress(OverflowError):
        if set(map(type, values)) <= {int, float} and math.isfinite(sum(values)):
            return -largest <= min(values, default=0) and max(values, default=0) <= largest
    return all(map(is_number, values))


def are_normalized(values: Sequence[float]) -> bool:
    """Return whether coordinates are shares of the image's sides: from 0 to 1, and not all of them whole numbers."""
    return min(values) >= 0 and max(values) <= 1 and any(value != round(value) for value in values)


def mask_of_image(source: Any) -> Rle:
    """Return the mask in an image: every pixel that is neither 0 (black, palette index 0) nor fully transparent.

    `source` is a path or a binary file object.

    Raises:
        DataError: No such file, not an image, or one in a format with lossy compression.
    """
    name = source if isinstance(source, Path) else "the mask"
    if isinstance(source, Path) and not file_exists(source):
        raise DataError(
            f"{source}: no such file; a mask was expected (an RLE is an object with size and counts, not a text)",
            "mask",
        )
    try:
        with open_image(source) as image:
            if image.format in _LOSSY_FORMATS and not (image.format == "WEBP" and _is_lossless_webp(source)):
                raise DataError(
                    f"{name}: the compression noise of {image.format} adds pixels to the mask; save it as PNG",
                    "mask",
                )
            pixels = np.asarray(image if image.mode not in ("LA", "PA") else image.convert("RGBA"))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read as a mask (PNG, ...)", "mask") from None
    # As in images.py: a damaged image may raise nearly anything.
    except Exception as error:
        raise DataError(f"{name}: not an image that can be read as a mask (PNG, ...): {error}", "mask") from error
    mask: npt.NDArray[np.bool_] = pixels != 0 if pixels.ndim == 2 else (pixels[..., :3] != 0).any(axis=2)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        mask &= pixels[..., 3] != 0
    return encode(mask)


def _is_lossless_webp(source: Any) -> bool:
    """Return whether a WebP file holds one image that is compressed without loss: its first pixels are a chunk VP8L."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(_WEBP_HEADER_BYTES)
        while len(head := file.read(_RIFF_CHUNK.size)) == _RIFF_CHUNK.size:
            kind, length = _RIFF_CHUNK.unpack(head)
            if kind in (b"VP8L", b"VP8 ", b"ANMF"):
                return bool(kind == b"VP8L")
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def check_rle(value: object) -> Rle:
    """Check an RLE from JSON: its runs must fill its size exactly. Uncompressed counts are compressed.

    Raises:
        ValueError: Not an object with `size` [H, W] and `counts`; counts that are malformed, or do not fill the size.
    """
    if not isinstance(value, dict) or "size" not in value or "counts" not in value:
        raise ValueError(f'an RLE is {{"size": [H, W], "counts": text}}; got {shorten(value)}')
    size, counts = value["size"], value["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(is_integer(side) and side > 0 for side in size):
        raise ValueError(f"the size of an RLE is [H, W], two positive integers; got {shorten(size)}")
    _check_pixels(*size)
    if isinstance(counts, str):
        array = run_array(counts)
        if array is not None and array.min() >= 0 and array.sum() == size[0] * size[1]:
            return Rle(size=list(size), counts=counts)
        runs = _runs_of_counts(counts)
    elif isinstance(counts, list) and all(is_integer(run) for run in counts):
        runs = counts
    else:
        raise ValueError(f"counts are text or a list of integers; got {shorten(counts)}")
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"the runs of counts must be 0 or more and fill {size[0]} x {size[1]} = {size[0] * size[1]} pixels; "
            f"found the sum {sum(runs)} and the smallest run {min(runs, default=0)}"
        )
    if not isinstance(counts, str):
        counts = coco.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode("ascii")
    return Rle(size=list(size), counts=counts)


def _check_pixels(height: int, width: int) -> None:
    """Check that pycocotools can hold a mask of this size; it does not check that, and ends the process."""
    if height * width >= 1 << 32:
        raise ValueError(f"COCO's RLE holds fewer than 2^32 pixels; got {shorten([height, width])}")


def _runs_of_counts(counts: str) -> list[int]:
    """Decode COCO's compressed counts to the lengths of the runs.

    A character holds five bits of a value and a sixth bit that is set if more characters of it follow; from the fourth
    run on, a value is the difference to the run two before (rleFrString in maskApi.c of COCO's API).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"counts are not COCO's compressed text: {shorten(counts)}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(f"counts are truncated: {shorten(counts)}")
    return runs
