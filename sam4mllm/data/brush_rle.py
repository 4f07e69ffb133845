"""The RLE of Label Studio's brush: a list of bytes that holds the RGBA values of an image, compressed bit by bit.

The format is that of the JavaScript package rle-pack of thi.ng/umbrella (Apache-2.0): 32 bits for the number of values,
5 for the bits of a value minus 1, four times 4 for the sizes of a count minus 1; then groups: a bit that is 1 for one
value that repeats, 2 bits for which of the sizes follows, the count minus 1 in that many bits, and the value or values.
Label Studio stores an image row by row, four values of 8 bits for each pixel; the mask is in the last one, the opacity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sam4mllm.data.masks import Rle, decode, encode
from sam4mllm.data.records import is_integer, shorten
from sam4mllm.data.rle_runs import run_lengths
from sam4mllm.errors import DataError

_CHANNELS = 4
_VALUE_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
# The opacity from which a pixel belongs to the mask: the brush has soft edges.
_OPAQUE = 128


def to_brush(rle: Rle) -> list[int]:
    """Encode a mask as the bytes of Label Studio's brush; pixels of the mask are opaque white."""
    pixels = decode(rle).reshape(-1)
    lengths = run_lengths(pixels)
    last = np.cumsum(lengths) - 1
    bits = [f"{len(pixels) * _CHANNELS:032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _COUNT_BITS)]
    for is_on, remaining in zip(pixels[last], (lengths * _CHANNELS).tolist(), strict=True):
        value = "1" * _VALUE_BITS if is_on else "0" * _VALUE_BITS
        while remaining:
            count = min(remaining, 1 << _COUNT_BITS[-1])
            index = next(number for number, size in enumerate(_COUNT_BITS) if count <= 1 << size)
            bits.append(f"1{index:02b}{count - 1:0{_COUNT_BITS[index]}b}{value}")
            remaining -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def from_brush(values: object, size_hw: tuple[int, int]) -> Rle:
    """Decode the bytes of Label Studio's brush to a mask of `size_hw` (H, W) pixels.

    Raises:
        DataError: Not a list of bytes, truncated, or of another number of pixels.
    """
    if not isinstance(values, list) or not all(is_integer(value) and 0 <= value < 256 for value in values):
        raise DataError(f"the rle of a brush is a list of bytes; found {shorten(values)}", "mask")
    height, width = size_hw
    alpha = _decode(bytes(values), height * width * _CHANNELS)[_CHANNELS - 1 :: _CHANNELS]
    return encode((alpha >= _OPAQUE).reshape(height, width))


def _decode(content: bytes, expected: int) -> npt.NDArray[np.uint8]:
    """Decode the values (expected,); a group is never larger than what is left of them."""
    bits = f"{int.from_bytes(content, 'big'):0{len(content) * 8}b}" if content else ""
    position = 0

    def read(length: int) -> int:
        nonlocal position
        if position + length > len(bits):
            raise DataError(f"the rle of a brush is truncated: it has {len(content)} bytes", "mask")
        position += length
        return int(bits[position - length : position], 2)

    count, value_bits = read(32), read(5) + 1
    if count != expected or value_bits != _VALUE_BITS:
        raise DataError(
            f"the rle of a brush has {count} values of {value_bits} bits, but the image has {expected} (four for each "
            "pixel) of 8 bits; export the annotation again",
            "mask",
        )
    sizes: Sequence[int] = [read(4) + 1 for _ in range(4)]
    decoded = np.zeros(expected, dtype=np.uint8)
    done = 0
    while done < expected:
        repeats = read(1)
        length = read(sizes[read(2)]) + 1
        if done + length > expected:
            raise DataError(
                f"the rle of a brush has more values than its {expected}; export the annotation again", "mask"
            )
        group = read(_VALUE_BITS * (1 if repeats else length))
        decoded[done : done + length] = (
            group if repeats else np.frombuffer(group.to_bytes(length, "big"), dtype=np.uint8)
        )
        done += length
    return decoded
