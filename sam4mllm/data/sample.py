"""Sample: one phrase about one image with the objects that it refers to; the record that all stages share.

Masks are stored as COCO's RLE and decoded on request, so a list of 120,000 samples needs little memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam4mllm.data.masks import Rle, area, decode
from sam4mllm.data.records import check_phrase
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box


@dataclass(frozen=True, slots=True)
class MaskObject:
    """One annotated object of an image.

    id: unique among all data sets ("refcoco/ann/1719310"); training looks its target up by it.
    rle: the mask; None if only a box is annotated.
    box: the annotated box if the format has one, else the tight box of the mask; in pixels, x2 and y2 exclusive.
    """

    id: str
    rle: Rle | None
    box: Box

    def mask(self) -> npt.NDArray[np.bool_]:
        """Decode the mask (H, W), bool, at the image's size.

        Raises:
            DataError: Only a box is annotated.
        """
        return decode(self.require_rle())

    def require_rle(self) -> Rle:
        """Return the mask as RLE.

        Raises:
            DataError: Only a box is annotated.
        """
        if self.rle is None:
            raise DataError(f"the object {self.id} has a box and no mask, but a mask is needed here; annotate a mask")
        return self.rle


@dataclass(frozen=True, slots=True)
class Sample:
    """One phrase about one image.

    id: unique in its data set, such as "refcoco/val/{ref_id}/{sent_id}".
    image: the path of the image.
    size_wh: the image's width and height in pixels, with its EXIF orientation applied.
    phrase: the referring expression.
    objects: the objects that the phrase refers to: none ("no object"), one or several.
    ignore: the mask of the ignored pixels, which scores exclude (ReasonSeg's 255); None for none.
    source: the record that it was read from, such as "mine.jsonl, line 3", for messages; equality ignores it.

    Raises:
        DataError: A phrase longer than `sam4mllm.data.records.LONGEST_PHRASE`; an object whose mask has no pixel; an
            image of more pixels than Pillow opens.
        ValueError: A mask whose size is not the image's.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from sam4mllm import Box, MaskObject, Sample
        >>> from sam4mllm.data.masks import encode
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> mask[1:3, 2:5] = True
        >>> cat = MaskObject("mine/cat", encode(mask), Box(2, 1, 5, 3))
        >>> sample = Sample("mine/1", Path("cat.jpg"), (6, 4), "the cat", (cat,))
        >>> sample.has_masks, int(sample.mask().sum())
        (True, 6)
    """

    id: str
    image: Path
    size_wh: tuple[int, int]
    phrase: str
    objects: tuple[MaskObject, ...]
    ignore: Rle | None = None
    source: str = field(default="", compare=False, repr=False)

    @property
    def where(self) -> str:
        """The record of this sample in messages: its source, or its id where the source is not known."""
        return self.source or f"sample {self.id}"

    def __post_init__(self) -> None:
        check_phrase(self.phrase, f"sample {self.id}")
        width, height = self.size_wh
        # As Pillow does, whose limit a program may raise or remove: a mask is decoded to a byte for each pixel.
        if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise DataError(
                f"sample {self.id}: the image has {width} x {height} pixels, and at most {2 * Image.MAX_IMAGE_PIXELS} "
                "are supported; correct the size, or reduce the image and its annotations",
                "image",
            )
        for item in self.objects:
            if item.rle is not None:
                self._check_size(item.rle, f"object {item.id}")
        if self.ignore is not None:
            self._check_size(self.ignore, "ignore mask")
        for item in self.objects:
            if item.rle is not None and not area(item.rle):
                raise DataError(
                    f"sample {self.id}: the mask of object {item.id} has no pixel, which scores would take for no "
                    "target; correct the mask, or take the object out",
                    "mask",
                )

    def _check_size(self, rle: Rle, name: str) -> None:
        width, height = self.size_wh
        if tuple(rle["size"]) != (height, width):
            raise ValueError(
                f"sample {self.id}: the {name} is {tuple(rle['size'])} (H, W), its image is {(height, width)}"
            )

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask; True if there is no object."""
        return all(item.rle is not None for item in self.objects)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the union of the objects' masks (H, W), bool; all False if there is no object.

        Raises:
            DataError: Only a box is annotated for an object.
        """
        width, height = self.size_wh
        union = np.zeros((height, width), dtype=bool)
        for item in self.objects:
            union |= item.mask()
        return union

    def ignored(self) -> npt.NDArray[np.bool_] | None:
        """Decode the mask of the ignored pixels (H, W), bool; None if there are none."""
        return None if self.ignore is None else decode(self.ignore)
