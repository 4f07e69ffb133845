"""The record of custom data: an image, one or several phrases, and their objects; parsed into samples, and written.

    {"image": path, "phrase": text | "phrases": [text, ...],
     "masks": [mask, ...] | "boxes": [[x1, y1, x2, y2], ...] | neither for "no object"}

A mask is COCO's RLE, a polygon [x1, y1, x2, y2, ...] or a list of polygons, or the path of an image whose nonzero
pixels are the object. Coordinates are pixels of the image; x2 and y2 are exclusive. Optional fields: `id`; `boxes`
beside `masks`, the annotated box of each mask; `object_ids`; `ignore`, a mask of pixels that scores ignore; `size_wh`
[width, height], which allows the image to be missing while the file is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from sam4mllm.data.boxes import check_box
from sam4mllm.data.images import known_size_wh, size_mismatch
from sam4mllm.data.masks import Rle, from_segmentation, mask_of_image, tight_box
from sam4mllm.data.polygon_parts import without_degenerate
from sam4mllm.data.problems import SKIP_ADVICE
from sam4mllm.data.records import (
    Record,
    Text,
    check_not_empty,
    is_number,
    parse_record,
    raise_problems,
    read_lines,
    record_problem,
    shorten,
)
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box


class PhrasesRecord(Record):
    """A record with an optional id, and one phrase or several. Unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid")

    id: Text | None = None
    phrase: Text = ""
    phrases: list[Text] = Field(default=[])

    def texts(self) -> list[str]:
        """Return the phrases, from `phrase` or `phrases`.

        Raises:
            DataError: Neither or both fields are given, or a phrase is empty.
        """
        if ("phrase" in self.model_fields_set) == ("phrases" in self.model_fields_set):
            raise DataError("give either phrase, a text, or phrases, a list of texts", "phrase")
        if "phrase" in self.model_fields_set:
            return [check_not_empty(self.phrase)]
        if not self.phrases:
            raise DataError("phrases is empty; give at least one phrase", "phrase")
        return [check_not_empty(phrase) for phrase in self.phrases]

    def numbered_texts(self, default_id: str) -> list[tuple[str, str]]:
        """Return (sample id, phrase) for each phrase; of several phrases, the ids end with their index."""
        record_id = default_id if self.id is None else self.id
        several = "phrases" in self.model_fields_set
        return [(f"{record_id}/{index}" if several else record_id, text) for index, text in enumerate(self.texts())]


class CustomRecord(PhrasesRecord):
    """One record of custom data, in the form above."""

    image: Text
    masks: list[Any] | None = None
    boxes: list[Any] | None = None
    object_ids: list[Text] | None = None
    ignore: Any = None
    size_wh: list[int] | None = None


class CustomRecordParser:
    """Parses the records of one file into samples.

    Args:
        name: The beginning of the ids of samples and objects whose record has no id.
        images: The folder that relative paths of images start from.
        masks: The folder that relative paths of masks start from.
        source: The file and the unit of its records, for messages: "mine.jsonl, line".
    """

    def __init__(self, name: str, images: Path, masks: Path, source: str) -> None:
        self._name = name
        self._images = images
        self._masks = masks
        self._source = source
        self._sizes_wh: dict[Path, tuple[int, int] | None] = {}

    def samples(self, value: object, number: int, image_name: str | None = None) -> list[Sample]:
        """Parse record `number` into samples, one for each phrase.

        A sample's id is the record's, or `{name}/{number}`; `/{index}` follows if `phrases` is given. The ids of
        objects contain `image_name`, by default the image's path in the record.

        Raises:
            DataError: A field is unknown, missing or invalid; no such image or mask.
        """
        record = parse_record(CustomRecord, value)
        path = self._images / record.image
        size_wh = self._size_wh(record, path)
        source = f"{self._source} {number}"
        objects = self._objects(record, image_name or record.image, size_wh, source)
        ignore = None if record.ignore is None else self._rle(record.ignore, size_wh, source)
        return [
            Sample(sample_id, path, size_wh, phrase, objects, ignore, source)
            for sample_id, phrase in record.numbered_texts(f"{self._name}/{number}")
        ]

    def _size_wh(self, record: CustomRecord, image: Path) -> tuple[int, int]:
        if image not in self._sizes_wh:
            self._sizes_wh[image] = known_size_wh(image)
        on_disk = self._sizes_wh[image]
        given = record.size_wh
        if given is None:
            if on_disk is None:
                raise DataError(f"{image}: no such image, or none that can be read", "image")
            return on_disk
        if len(given) != 2 or min(given) < 1:
            raise DataError(f"size_wh is [width, height], two positive integers; found {shorten(given)}", "field")
        size_wh = given[0], given[1]
        if on_disk is not None and on_disk != size_wh:
            raise DataError(f"size_wh is {size_mismatch(image, size_wh, on_disk)}", "image")
        return size_wh

    def _objects(
        self, record: CustomRecord, image_name: str, size_wh: tuple[int, int], source: str
    ) -> tuple[MaskObject, ...]:
        """Return the objects of the phrase; none if neither masks nor boxes are given."""
        if record.masks is None and record.boxes is None:
            return ()
        # 1. Masks, and a box for each: the annotated one, or the tight box of the mask.
        count = len(record.masks if record.masks is not None else record.boxes or ())
        rles = [None] * count if record.masks is None else [self._rle(mask, size_wh, source) for mask in record.masks]
        if record.boxes is None:
            boxes = [_tight_box(rle) for rle in rles if rle is not None]
        else:
            boxes = [_box(value) for value in record.boxes]
        if len(boxes) != count:
            raise DataError(f"{count} masks, but {len(boxes)} boxes; give one of each for every object", "field")
        if record.boxes is not None:
            for index, (rle, box) in enumerate(zip(rles, boxes, strict=True)):
                try:
                    check_box(box, size_wh, rle)
                except DataError as error:
                    raise DataError(f"object {index}: {error}" if count > 1 else str(error)) from None
        # 2. Ids: the record's, or ids made of the content, so that an object has one id in all records about it.
        if record.object_ids is None:
            ids = [f"{self._name}/{image_name}/{_digest(rle, box)}" for rle, box in zip(rles, boxes, strict=True)]
            # An object that is listed twice is one object.
            by_id = {key: MaskObject(key, rle, box) for key, rle, box in zip(ids, rles, boxes, strict=True)}
            return tuple(by_id.values())
        if len(record.object_ids) != count:
            raise DataError(
                f"object_ids holds one text for each of the {count} objects; found {shorten(record.object_ids)}",
                "field",
            )
        return tuple(MaskObject(key, rle, box) for key, rle, box in zip(record.object_ids, rles, boxes, strict=True))

    def _rle(self, mask: object, size_wh: tuple[int, int], source: str) -> Rle:
        """Return the RLE of a mask in any of its forms, after checking its size against the image's."""
        width, height = size_wh
        if isinstance(mask, str):
            mask = mask_of_image(self._masks / mask)
        elif isinstance(mask, list) and mask and not isinstance(mask[0], list):
            mask = [mask]
        try:
            return from_segmentation(without_degenerate(mask, source), (height, width))
        except ValueError as error:
            raise DataError(f"a mask: {error}", "mask") from error


def record_of(sample: Sample, folder: Path) -> dict[str, Any]:
    """Return the record that `CustomRecordParser` parses to this sample again if the file is located in `folder`.

    An image below `folder` gets a relative path, any other an absolute one.
    """
    path, absolute_folder = sample.image.absolute(), folder.absolute()
    image = path.relative_to(absolute_folder) if path.is_relative_to(absolute_folder) else path
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
    path: Path, samples_of: Callable[[object, int], list[Sample]], limit: int | None = None, *, empty: str
) -> list[Sample]:
    """Read a JSONL file whose lines `samples_of(value, line number)` parses to samples, in the file's order.

    At most `limit` samples are returned, and no line after them is read. `empty` is the error's text for a file without
    a line.

    Raises:
        DataError: No such file, no line in it, or bad lines (all are counted, the first ten listed with their numbers).
    """
    samples: list[Sample] = []
    first_lines: dict[str, int] = {}
    problems: list[DataError] = []
    for number, value in read_lines(path, lambda record: record, problems):
        try:
            of_line = samples_of(value, number)
        # OverflowError: a number with more digits than pycocotools supports.
        except (DataError, ValueError, OverflowError) as error:
            problems.append(record_problem("line", number, error))
            continue
        problems += [record_problem("line", number, each) for each in duplicate_ids(of_line, number, first_lines)]
        samples += of_line
        if limit is not None and len(samples) >= limit:
            break
    raise_problems(path, problems, advice=SKIP_ADVICE)
    if not samples and not problems:
        raise DataError(f"{path}: {empty}")
    return samples[:limit]


def duplicate_ids(
    samples: Sequence[Sample], number: int, first_numbers: dict[str, int], unit: str = "line"
) -> list[DataError]:
    """Return a problem for each id that an earlier line or row has; `first_numbers` is updated with the new ids."""
    problems = [
        DataError(f"the id {sample.id!r} is also in {unit} {first_numbers[sample.id]}", "duplicate")
        for sample in samples
        if sample.id in first_numbers
    ]
    first_numbers.update((sample.id, number) for sample in samples if sample.id not in first_numbers)
    return problems


def _box(value: object) -> Box:
    """Parse a box (x1, y1, x2, y2) in pixels.

    Raises:
        DataError: Not four finite numbers, or corners out of order, as in most boxes x, y, width, height.
    """
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(is_number, numbers)):
        raise DataError(f"a box is [x1, y1, x2, y2] in pixels; found {shorten(value)}", "box")
    box = Box(*map(float, numbers))
    if box.x1 > box.x2 or box.y1 > box.y2:
        raise DataError(f"a box is [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2; found {shorten(value)}", "box")
    return box


def _tight_box(rle: Rle) -> Box:
    box = tight_box(rle)
    if box is None:
        raise DataError('a mask has no pixel; leave masks out if the phrase has no object ("no object")', "mask")
    return box


def _digest(rle: Rle | None, box: Box) -> str:
    """Return a short digest of an object's mask and box."""
    counts = "" if rle is None else rle["counts"]
    return hashlib.sha256(f"{counts}\n{list(box)}".encode()).hexdigest()[:12]
