"""The record of data of one's own: an image, a phrase or several, and what they mean; read into samples and written.

    {"image": path, "phrase": text | "phrases": [text, ...],
     "masks": [mask, ...] | "boxes": [[x1, y1, x2, y2], ...] | nothing for "no object"}

A mask is COCO's run lengths, a polygon [x1, y1, x2, y2, ...] or a list of them, or the path of an image whose pixels
other than 0 are the object. Coordinates are pixels of the image; x2 and y2 lie beyond the box. Further fields, all
optional: `id`; `boxes` beside `masks`, the annotated box of each; `object_ids`; `ignore`, a mask of pixels that count
for nobody; `size_wh` [width, height], which lets an image be elsewhere while the file is read. This module does not
know where records come from: the reader that calls says which line it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sam4mllm.data.fields import check_not_empty, file_exists, is_number, require_field, shorten
from sam4mllm.data.image_header import known_size_wh
from sam4mllm.data.json_lines import raise_faults, read_lines
from sam4mllm.data.masks import Rle, area, decode, encode, from_segmentation
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, box_of_mask

FIELDS = ("id", "image", "phrase", "phrases", "masks", "boxes", "object_ids", "ignore", "size_wh")

# Pixels by which a box may reach out of its image: programs round, and some count the last pixel otherwise.
_OUT = 2


class Records:
    """Turns the records of one file into samples.

    Args:
        name: the beginning of the ids of samples and objects that have none of their own.
        images: the folder from which relative paths of images start.
        masks: the folder from which relative paths of masks start.
    """

    def __init__(self, name: str, images: Path, masks: Path) -> None:
        self._name = name
        self._images = images
        self._masks = masks
        self._sizes_wh: dict[Path, tuple[int, int] | None] = {}

    def samples(self, value: object, number: int, named: str | None = None) -> list[Sample]:
        """The samples of record `number`, one for each phrase.

        A sample's id is the record's, or `{name}/{number}`; with `phrases`, `/{index}` follows. In the ids of objects
        the image is called `named`, or by its path as the record has it.

        Raises:
            DataError: a field that is unknown, missing or not what it promises; no such image or mask.
        """
        record = require_field({"record": value}, "record", dict, "sample")
        unknown = [key for key in record if key not in FIELDS]
        if unknown:
            raise DataError(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
        image = require_field(record, "image", str, "sample")
        path = self._images / image
        size_wh = self._size_wh(record, path)
        objects = self._objects(record, named or image, size_wh)
        ignore = None if record.get("ignore") is None else self._rle(record["ignore"], size_wh)
        identity = f"{self._name}/{number}" if record.get("id") is None else require_field(record, "id", str, "sample")
        several = "phrases" in record
        return [
            Sample(f"{identity}/{index}" if several else identity, path, size_wh, phrase, objects, ignore)
            for index, phrase in enumerate(phrases_of(record))
        ]

    def _size_wh(self, record: Mapping[str, Any], image: Path) -> tuple[int, int]:
        if image not in self._sizes_wh:
            self._sizes_wh[image] = known_size_wh(image)
        on_disk = self._sizes_wh[image]
        given = record.get("size_wh")
        if given is None:
            if on_disk is None:
                raise DataError(f"{image}: no such image, or none that can be read")
            return on_disk
        if (
            not isinstance(given, list)
            or len(given) != 2
            or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in given)
        ):
            raise DataError(f"size_wh is [width, height], whole and positive; found {shorten(given)}")
        if on_disk not in (None, tuple(given)):
            raise DataError(f"size_wh is {tuple(given)}, but {image} is {on_disk}")
        return given[0], given[1]

    def _objects(self, record: Mapping[str, Any], named: str, size_wh: tuple[int, int]) -> tuple[MaskObject, ...]:
        """The objects that are meant; none where neither masks nor boxes are given."""
        given_masks, given_boxes = record.get("masks"), record.get("boxes")
        for key, given in (("masks", given_masks), ("boxes", given_boxes)):
            if given is not None and not isinstance(given, list):
                raise DataError(f"{key} is a list, an entry for each object; found {shorten(given)}")
        if given_masks is None and given_boxes is None:
            return ()
        count = len(given_masks if given_masks is not None else given_boxes or ())
        rles = [None] * count if given_masks is None else [self._rle(mask, size_wh) for mask in given_masks]
        boxes = (
            [_tight(rle) for rle in rles if rle is not None] if given_boxes is None else list(map(_box, given_boxes))
        )
        if len(boxes) != count:
            raise DataError(f"{count} masks, but {len(boxes)} boxes; give each object one of each")
        if given_masks is None:
            for box in boxes:
                _check_in_pixels(box, size_wh)
        ids = record.get("object_ids")
        if ids is None:
            made = (f"{self._name}/{named}/{_digest(rle, box)}" for rle, box in zip(rles, boxes, strict=True))
            # One that is listed twice is one object.
            by_id = {key: MaskObject(key, rle, box) for key, rle, box in zip(made, rles, boxes, strict=True)}
            return tuple(by_id.values())
        if not isinstance(ids, list) or len(ids) != count or not all(isinstance(each, str) for each in ids):
            raise DataError(f"object_ids names each of the {count} objects by a text; found {shorten(ids)}")
        return tuple(MaskObject(key, rle, box) for key, rle, box in zip(ids, rles, boxes, strict=True))

    def _rle(self, mask: object, size_wh: tuple[int, int]) -> Rle:
        """The run lengths of a mask, checked against the image's size."""
        width, height = size_wh
        if isinstance(mask, str):
            mask = mask_of_image(self._masks / mask)
        elif isinstance(mask, list) and mask and not isinstance(mask[0], list):
            mask = [mask]
        try:
            rle = from_segmentation(mask, (height, width))
        except ValueError as error:
            raise DataError(f"a mask: {error}") from error
        return rle


def record_of(sample: Sample, home: Path) -> dict[str, Any]:
    """The record from which `Records`, started in the folder `home`, makes this sample again.

    An image below `home` is named relative to it, any other by its whole path.
    """
    place, folder = sample.image.absolute(), home.absolute()
    image = place.relative_to(folder) if place.is_relative_to(folder) else place
    record: dict[str, Any] = {
        "id": sample.id,
        "image": image.as_posix(),
        "size_wh": list(sample.size_wh),
        "phrase": sample.phrase,
    }
    if sample.objects:
        if sample.has_masks:
            record["masks"] = [item.rle for item in sample.objects]
        record["boxes"] = [list(item.box) for item in sample.objects]
        record["object_ids"] = [item.id for item in sample.objects]
    return record if sample.ignore is None else {**record, "ignore": sample.ignore}


def samples_of_lines(
    path: Path, samples_of: Callable[[object, int], list[Sample]], limit: int | None = None
) -> list[Sample]:
    """The samples that `samples_of` makes of each line of a JSONL file (its value, its number), in the file's order.

    Of at most `limit` samples, no line after them is read.

    Raises:
        DataError: no such file, or bad lines (all counted, the first ten told by line number).
    """
    samples: list[Sample] = []
    first_lines: dict[str, int] = {}
    faults: list[str] = []
    for number, value in read_lines(path, lambda record: record, faults):
        try:
            found = samples_of(value, number)
        # OverflowError: a number with more digits than pycocotools can take.
        except (DataError, ValueError, OverflowError) as error:
            faults.append(f"line {number}: {error}")
            continue
        faults += note_ids(found, number, first_lines)
        samples += found
        if limit is not None and len(samples) >= limit:
            break
    raise_faults(path, faults)
    return samples[:limit]


def note_ids(samples: Sequence[Sample], number: int, first_lines: dict[str, int]) -> list[str]:
    """What is wrong with the ids of line `number`: one that an earlier line has. `first_lines` keeps where each was."""
    faults = [
        f"line {number}: the id {sample.id!r} is line {first_lines[sample.id]}'s too"
        for sample in samples
        if sample.id in first_lines
    ]
    first_lines.update((sample.id, number) for sample in samples if sample.id not in first_lines)
    return faults


def mask_of_image(source: Any) -> Rle:
    """The mask that an image file shows: every pixel that is neither 0 (black, index 0) nor wholly transparent.

    `source` is a path or an open file of bytes.

    Raises:
        DataError: no such file, or no image.
    """
    name = source if isinstance(source, Path) else "the mask"
    if isinstance(source, Path) and not file_exists(source):
        raise DataError(
            f"{source}: no such file; a mask was expected (run lengths are no text but an object with size and counts)"
        )
    try:
        with Image.open(source) as image:
            if image.format == "JPEG":
                raise DataError(f"{name}: a JPEG's noise makes pixels of the mask that are none; save it as PNG")
            pixels = np.asarray(image if image.mode not in ("LA", "PA") else image.convert("RGBA"))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read as a mask (PNG, ...)") from None
    # As in images.py: a damaged image may raise nearly anything.
    except Exception as error:
        raise DataError(f"{name}: not an image that can be read as a mask (PNG, ...): {error}") from error
    mask: npt.NDArray[np.bool_] = pixels != 0 if pixels.ndim == 2 else (pixels[..., :3] != 0).any(axis=2)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        mask &= pixels[..., 3] != 0
    return encode(mask)


def phrases_of(record: Mapping[str, Any]) -> list[str]:
    """The phrases of a record, from `phrase` or `phrases`.

    Raises:
        DataError: neither or both of them, or no text in one.
    """
    if ("phrase" in record) == ("phrases" in record):
        raise DataError("give either phrase, a text, or phrases, a list of texts")
    if "phrase" in record:
        return [check_not_empty(require_field(record, "phrase", str, "sample"), "sample")]
    phrases = require_field(record, "phrases", list, "sample")
    if not phrases:
        raise DataError("phrases is empty; give one phrase at least")
    return [
        check_not_empty(require_field({"phrases": phrase}, "phrases", str, "sample"), "sample") for phrase in phrases
    ]


def _box(value: object) -> Box:
    """A box (x1, y1, x2, y2) in pixels.

    Raises:
        DataError: no four finite numbers, or corners out of order, as COCO's x, y, width, height mostly are.
    """
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(is_number, numbers)):
        raise DataError(f"a box is [x1, y1, x2, y2] in pixels; found {shorten(value)}")
    box = Box(*map(float, numbers))
    if box.x1 > box.x2 or box.y1 > box.y2:
        raise DataError(f"a box is [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2; found {shorten(value)}")
    return box


def _check_in_pixels(box: Box, size_wh: tuple[int, int]) -> None:
    """Nothing, for a box that can be one of the image's pixels.

    Raises:
        DataError: one that reaches out of the image, as boxes of another size or with y first do, or lies in its
            first pixel, as shares of the sides do.
    """
    width, height = size_wh
    if not box.clip(size_wh).area:
        raise DataError(f"the box {list(box)} has no part in the image of {size_wh} (width, height)")
    if min(box.x1, box.y1) < -_OUT or box.x2 > width + _OUT or box.y2 > height + _OUT:
        raise DataError(
            f"the box {list(box)} reaches out of the image of {size_wh} (width, height); a box is [x1, y1, x2, y2] "
            "in pixels of the image as it is seen, x first"
        )
    if max(box) <= 1 and min(size_wh) > 1:
        raise DataError(f"the box {list(box)} is in shares of the image's sides; give pixels of {size_wh}")


def _tight(rle: Rle) -> Box:
    box = box_of_mask(decode(rle)) if area(rle) else None
    if box is None:
        raise DataError('a mask has no pixel; leave masks out where the phrase means nothing ("no object")')
    return box


def _digest(rle: Rle | None, box: Box) -> str:
    """Names an object by what it is, so that two lines about it name it alike."""
    counts = "" if rle is None else rle["counts"]
    return hashlib.sha256(f"{counts}\n{list(box)}".encode()).hexdigest()[:12]
