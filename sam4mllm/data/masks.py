"""Masks as COCO's run lengths: polygons and run lengths in, bool arrays out, and back.

A mask that comes as several polygons is their OR; summing them would count overlaps twice and lose them at 2 == 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from sam4mllm.errors import DataError


class Rle(TypedDict):
    """COCO's compressed run lengths: `size` [H, W], `counts` ASCII text, column-major."""

    size: list[int]
    counts: str


def encode(mask: npt.NDArray[np.bool_]) -> Rle:
    """Run lengths of a mask (H, W) bool."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle) -> npt.NDArray[np.bool_]:
    """The mask (H, W), bool, of run lengths."""
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def area(rle: Rle) -> int:
    """Pixels of the mask."""
    return int(coco.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))
