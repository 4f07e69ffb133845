"""COCO's instances.json: the images and the annotated objects that refs point into.

An image or an annotation is checked when a ref asks for it, so that a file of 200,000 annotations costs little more
than its JSON. This module knows nothing about phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.fields import is_number, read_json, require_field, shorten
from sam4mllm.data.image_header import known_size_wh
from sam4mllm.data.masks import decode, from_segmentation
from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, box_of_mask


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of instances.json: where it lies and its size (width, height) in pixels."""

    path: Path
    size_wh: tuple[int, int]


class Instances:
    """The images and annotations of one instances.json.

    Args:
        path: the file.
        images: the folder that holds the images.
        name: the data set's name; the objects' ids begin with it.

    Raises:
        DataError: no such file, no COCO file, or one id given twice.
    """

    def __init__(self, path: Path, images: Path, name: str) -> None:
        self.path = path
        self._folder = images
        self._name = name
        content = read_json(path, "COCO's instances")
        self._image_records = self._by_id(require_field(content, "images", list, str(path)), "images")
        self._annotation_records = self._by_id(require_field(content, "annotations", list, str(path)), "annotations")
        self._images: dict[int, ImageRecord] = {}
        self._objects: dict[int, MaskObject] = {}

    def image(self, image_id: int, where: str) -> ImageRecord:
        """The image with this id; `where` names the ref that asks.

        Raises:
            DataError: no such image, a record without name or size, or a size that is not the one of the file on
                disk. An image that is not on disk, or cannot be opened, is no error here.
        """
        if image_id not in self._images:
            path = self.path_of(image_id, where)
            record, place = self._image_records[image_id], f"{self.path}, image {image_id}"
            size_wh = require_field(record, "width", int, place), require_field(record, "height", int, place)
            if min(size_wh) < 1:
                raise DataError(f"{place}: an image has at least one pixel; found {size_wh} (width, height)")
            on_disk = known_size_wh(path)
            if on_disk not in (None, size_wh):
                raise DataError(
                    f"{place}: annotated at {size_wh} (width, height), but {path} is {on_disk}; "
                    "use the images that the annotations were made on"
                )
            self._images[image_id] = ImageRecord(path, size_wh)
        return self._images[image_id]

    def path_of(self, image_id: int, where: str) -> Path:
        """Where the image with this id lies; it is not looked at.

        Raises:
            DataError: no such image, or a record without a name.
        """
        if image_id not in self._image_records:
            raise DataError(f"{where}: {self.path} has no image {image_id}")
        name = require_field(self._image_records[image_id], "file_name", str, f"{self.path}, image {image_id}")
        return self._folder / name

    def image_of(self, annotation_id: int, where: str) -> int:
        """The id of the image that an annotation is about.

        Raises:
            DataError: no such annotation, or a record that names no image.
        """
        if annotation_id not in self._annotation_records:
            raise DataError(f"{where}: {self.path} has no annotation {annotation_id}")
        record = self._annotation_records[annotation_id]
        return require_field(record, "image_id", int, f"{self.path}, annotation {annotation_id}")

    def object(self, annotation_id: int, image_id: int, where: str) -> MaskObject:
        """The annotated object with this id on the image `image_id`; `where` names the ref that asks.

        Raises:
            DataError: no such annotation, one of another image, or one whose box or mask is not COCO's or is of
                another size than its image.
        """
        annotated = self.image_of(annotation_id, where)
        record, place = self._annotation_records[annotation_id], f"{self.path}, annotation {annotation_id}"
        if annotated != image_id:
            raise DataError(f"{where}: annotation {annotation_id} belongs to image {annotated}, not to {image_id}")
        if annotation_id not in self._objects:
            width, height = self.image(image_id, where).size_wh
            try:
                rle = from_segmentation(record.get("segmentation"), (height, width))
            except ValueError as error:
                raise DataError(f"{place}: {error}") from error
            box = _box(record["bbox"], place) if "bbox" in record else box_of_mask(decode(rle))
            if box is None:
                raise DataError(f"{place}: neither a bbox nor a pixel in the mask, so the object is nowhere")
            self._objects[annotation_id] = MaskObject(f"{self._name}/ann/{annotation_id}", rle, box)
        return self._objects[annotation_id]

    def _by_id(self, records: list[Any], key: str) -> dict[int, dict[str, Any]]:
        table: dict[int, dict[str, Any]] = {}
        for index, record in enumerate(records):
            identity = require_field(record, "id", int, f"{self.path}, {key}[{index}]")
            if identity in table:
                raise DataError(f"{self.path}: {key} holds the id {identity} twice")
            table[identity] = record
        return table


def _box(bbox: object, place: str) -> Box:
    """COCO's x, y, w, h as a Box, in pixels."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)) or min(bbox[2:]) < 0:
        raise DataError(f"{place}: a bbox is [x, y, width, height] in pixels; found {shorten(bbox)}")
    x, y, width, height = (float(value) for value in bbox)
    return Box(x, y, x + width, y + height)
