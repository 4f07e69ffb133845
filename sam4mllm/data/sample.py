"""Sample: one phrase about one image, with the objects it means; the record that readers make and every stage takes.

Masks travel as COCO's compressed run lengths and are decoded when asked for, so a list of 120,000 samples stays light.
This module knows no file format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam4mllm.data.fields import check_phrase
from sam4mllm.data.masks import Rle, decode
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box


@dataclass(frozen=True, slots=True)
class MaskObject:
    """One annotated object of an image.

    `id` names the object wherever it is spoken of ("refcoco/ann/1719310"): it seeds the point groups and keys the
    target store. `rle` is the mask; None where a box alone is annotated. `box` is the annotated box where the format
    has one, else the tight box of the mask.
    """

    id: str
    rle: Rle | None
    box: Box

    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask (H, W), bool, at the image's size.

        Raises:
            DataError: a box alone is annotated.
        """
        if self.rle is None:
            raise DataError(f"the object {self.id} has a box and no mask, and masks are asked for; give it a mask")
        return decode(self.rle)


@dataclass(frozen=True, slots=True)
class Sample:
    """One phrase about one image. `objects` is what the phrase means: none ("no object"), one or several.

    `ignore` marks the pixels that count for nobody when scores are taken (ReasonSeg's 255), or None.

    Raises:
        DataError: a phrase too long to be one.
        ValueError: a mask whose size is not the image's.
    """

    id: str
    image: Path
    size_wh: tuple[int, int]
    phrase: str
    objects: tuple[MaskObject, ...]
    ignore: Rle | None = None

    def __post_init__(self) -> None:
        check_phrase(self.phrase, f"sample {self.id}")
        width, height = self.size_wh
        for what, rle in [(f"object {o.id}", o.rle) for o in self.objects] + [("ignore mask", self.ignore)]:
            if rle is not None and tuple(rle["size"]) != (height, width):
                raise ValueError(
                    f"sample {self.id}: the {what} is {tuple(rle['size'])} (H, W), its image is {(height, width)}"
                )

    @property
    def has_masks(self) -> bool:
        """Whether every object that is meant has a mask; true for a phrase that means nothing."""
        return all(item.rle is not None for item in self.objects)

    def mask(self) -> npt.NDArray[np.bool_]:
        """The union of the objects' masks (H, W), bool; all False when the phrase means nothing in the image.

        Raises:
            DataError: an object of which a box alone is annotated.
        """
        width, height = self.size_wh
        union = np.zeros((height, width), dtype=bool)
        for item in self.objects:
            union |= item.mask()
        return union

    def ignored(self) -> npt.NDArray[np.bool_] | None:
        """The pixels (H, W), bool, that count for nobody; None where all count."""
        return None if self.ignore is None else decode(self.ignore)
