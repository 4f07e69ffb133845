"""The check of an annotated box against its image and its mask, for all readers."""

from __future__ import annotations

from sam4mllm.data.masks import Rle, tight_box
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

# The distance in pixels by which a box may differ from its mask or leave its image: programs round coordinates, and for
# some x2 and y2 are the last pixel, for others the one after it.
_TOLERANCE = 2

# Boxes of other segmentations of an object, such as coarser polygons, have a higher IoU than this with the mask's box.
_MIN_IOU = 0.5


def check_box(box: Box, size_wh: tuple[int, int], rle: Rle | None = None) -> None:
    """Check that a box can be in pixels of an image of `size_wh` pixels, and belong to the mask if there is one.

    Raises:
        DataError: The mask has no pixel; the box has no area in the image, leaves it, is normalized to its size, or
            does not fit the mask. The message names the form that the numbers seem to be in.
    """
    if rle is not None:
        tight = tight_box(rle)
        if tight is None:
            raise DataError(
                "the mask has no pixel, so there is no object; correct the mask, or take the object out", "mask"
            )
        if _are_close(box, tight):
            return
    numbers = [round(value, 2) for value in box]
    if rle is not None and tight is not None and (form := _other_form(box, tight, size_wh)):
        raise DataError(f"the box {numbers} does not fit its mask, whose box is {list(tight)}; {form}", "box")
    if not box.clip(size_wh).area:
        raise DataError(f"the box {numbers} has no area in the image of {size_wh} (width, height)", "box")
    if max(box) <= 1 and min(size_wh) > 1:
        raise DataError(f"the box {numbers} is normalized to the image's size; give pixels of {size_wh}", "box")
    width, height = size_wh
    if min(box.x1, box.y1) < -_TOLERANCE or box.x2 > width + _TOLERANCE or box.y2 > height + _TOLERANCE:
        raise DataError(
            f"the box {numbers} (x1, y1, x2, y2) leaves the image of {size_wh} (width, height); it must be in pixels "
            "of the image after its EXIF rotation, x first",
            "box",
        )
    if rle is not None and tight is not None and box.iou(tight) < _MIN_IOU:
        raise DataError(
            f"the box {numbers} (x1, y1, x2, y2) does not fit its mask, whose box is {list(tight)}; correct it, or "
            "leave the box out, so that the mask's own is used",
            "box",
        )


def _are_close(box: Box, other: Box) -> bool:
    return (
        abs(box.x1 - other.x1) <= _TOLERANCE
        and abs(box.y1 - other.y1) <= _TOLERANCE
        and abs(box.x2 - other.x2) <= _TOLERANCE
        and abs(box.y2 - other.y2) <= _TOLERANCE
        and bool(box.area)
    )


def _other_form(box: Box, tight: Box, size_wh: tuple[int, int]) -> str | None:
    """Return what the numbers of a box are if they are the mask's box in another form; None if they are in none."""
    x1, y1, x2, y2 = box
    width, height = size_wh
    if _are_close(Box(x1, y1, x2 - x1, y2 - y1), tight):
        return "its numbers are x1, y1, x2, y2, but this field is x, y, width, height"
    if _are_close(Box(x1, y1, x1 + x2, y1 + y2), tight):
        return "its numbers are x, y, width, height, but this field is x1, y1, x2, y2"
    if _are_close(Box(y1, x1, y2, x2), tight):
        return "its numbers are y before x"
    for whole, name in ((1, "shares"), (100, "percent"), (1000, "thousandths")):
        if _are_close(Box(x1 * width / whole, y1 * height / whole, x2 * width / whole, y2 * height / whole), tight):
            return f"its numbers are {name} of the image's sides; give pixels"
    return None
