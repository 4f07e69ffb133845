"""The brush RLE of Label Studio: exact round trips, bytes that its own SDK wrote, and broken input."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.data.brush_rle import from_brush, to_brush
from sam4mllm.data.masks import decode, encode
from sam4mllm.errors import DataError

# What label_studio_sdk.converter.brush.mask2rle (2.0.13) returns for MASK, and encode_rle for SOFT.
MASK = np.zeros((6, 9), dtype=bool)
MASK[1:5, 2:7] = True
MASK[2, 4] = False
SDK_MASK = "AAAA2Dkb/isAwn/3wCf/jAJ/++AYT/74BhP/xWAA"
SOFT = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
SDK_SOFT = (
    "AAAA2Dkb/GARgkYRGGRiEYpGMRjkZBGSRlEZZGYRmkZxGeRoEaJGkRpkahGqRrEa5GwRskbRG2RuEbpG"
    "8RvkcBHCRxEcZHIRykcxHOR0EdJHUR1kdhHaR3Ed5HgR4keRHmR6EeoA"
)


def test_the_bytes_of_the_sdk_are_read_and_written() -> None:
    assert np.array_equal(decode(from_brush(list(base64.b64decode(SDK_MASK)), MASK.shape)), MASK)
    assert bytes(to_brush(encode(MASK))) == base64.b64decode(SDK_MASK)


def test_soft_edges_belong_to_the_mask_from_half_opacity() -> None:
    assert np.array_equal(decode(from_brush(list(base64.b64decode(SDK_SOFT)), SOFT.shape)), SOFT >= 128)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_masks_survive(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    assert np.array_equal(decode(from_brush(to_brush(encode(mask)), (height, width))), mask)


def test_runs_beyond_sixteen_bits_survive() -> None:
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:, 5:] = True
    assert np.array_equal(decode(from_brush(to_brush(encode(mask)), (300, 400))), mask)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("abc", "is a list of bytes; found 'abc'"),
        ([1, 256], "is a list of bytes"),
        ([True], "is a list of bytes"),
        ([], "truncated: it has 0 bytes"),
        (to_brush(encode(MASK))[:-4], "truncated"),
        (to_brush(encode(MASK[:5])), "has 180 values of 8 bits, but the image has 216"),
    ],
)
def test_broken_bytes_are_refused(values: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_brush(values, (6, 9))


def test_more_values_than_announced_are_refused() -> None:
    """A group of 16 values where 4 are left."""
    bits = f"{4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "1" + "01" + "1111" + "11111111"
    bits += "0" * (-len(bits) % 8)
    with pytest.raises(DataError, match="more values than its 4"):
        from_brush(list(int(bits, 2).to_bytes(len(bits) // 8, "big")), (1, 1))
