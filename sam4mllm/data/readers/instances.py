"""COCO's instances.json: the images and annotated objects that refs and phrases refer to by id.

An image or an annotation is validated when it is used, and its polygons are parsed then, so that those that are not
used cost little.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import Field

from sam4mllm.data.boxes import check_box
from sam4mllm.data.images import known_size_wh, size_mismatch
from sam4mllm.data.masks import from_segmentation, tight_box
from sam4mllm.data.polygon_parts import without_degenerate
from sam4mllm.data.problems import record_errors
from sam4mllm.data.readers.instances_json import UnparsedPolygons, read_instances
from sam4mllm.data.records import Record, Text, is_number, parse_record, shorten
from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

_NO_BOX = Box(0, 0, 0, 0)
# A name without folders, as those of COCO, which cannot leave the folder of the images.
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class _InstancesFile(Record):
    images: list[Any]
    annotations: list[Any]
    categories: list[Any] = Field(default=[])


class _Identified(Record):
    id: int


class _ImageName(Record):
    file_name: Text


class _ImageSize(Record):
    width: int
    height: int


class _Annotation(Record):
    image_id: int
    segmentation: Any = None
    bbox: Any = None


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of instances.json: its path, and its size (width, height) in pixels."""

    path: Path
    size_wh: tuple[int, int]


class Instances:
    """The images and annotations of one instances.json.

    Args:
        path: The file.
        images: The folder that holds the images.
        name: The data set's name; the objects' ids begin with it.
        boxes_alone: Whether an annotation may have a bbox alone, with no segmentation or an empty one, as exports of
            detection data have.

    Attributes:
        path: The file.
        image_records, annotation_records: The records of the file by id, in its order; they are validated when used.
        categories: The records of the categories, unvalidated.

    Raises:
        DataError: No such file, not a file of COCO's instances, or a duplicate id.
    """

    def __init__(self, path: Path, images: Path, name: str, *, boxes_alone: bool = False) -> None:
        self.path = path
        self._boxes_alone = boxes_alone
        self._folder = images
        self._name = name
        content = parse_record(_InstancesFile, read_instances(path), str(path))
        self.image_records = self._by_id(content.images, "images")
        self.annotation_records = self._by_id(content.annotations, "annotations")
        self.categories = content.categories
        self._paths: dict[int, Path] = {}
        self._images: dict[int, CocoImage] = {}
        self._objects: dict[int, MaskObject] = {}

    def image(self, image_id: int, where: str) -> CocoImage:
        """Return the image with this id; `where` names the referring record in errors.

        Raises:
            DataError: No such image, a record without name or size, or a size other than that of the file on disk. An
                image that is missing on disk, or cannot be opened, is not an error here.
        """
        if image_id not in self._images:
            path = self.path_of(image_id, where)
            where_image = f"{self.path}, image {image_id}"
            record = parse_record(_ImageSize, self.image_records[image_id], where_image)
            size_wh = record.width, record.height
            if min(size_wh) < 1:
                raise DataError(
                    f"{where_image}: an image has at least one pixel; found {size_wh} (width, height)", "image"
                )
            on_disk = known_size_wh(path)
            if on_disk is not None and on_disk != size_wh:
                raise DataError(f"{where_image}: annotated at {size_mismatch(path, size_wh, on_disk)}", "image")
            self._images[image_id] = CocoImage(path, size_wh)
        return self._images[image_id]

    def path_of(self, image_id: int, where: str) -> Path:
        """Return the path of the image with this id; the file is not opened.

        Raises:
            DataError: No such image, or a record without a name, or one that leaves the folder of the images.
        """
        if image_id not in self._paths:
            if image_id not in self.image_records:
                raise DataError(f"{where}: {self.path} has no image {image_id}", "reference")
            where_image = f"{self.path}, image {image_id}"
            record = parse_record(_ImageName, self.image_records[image_id], where_image)
            self._paths[image_id] = image_path(self._folder, record.file_name, where_image)
        return self._paths[image_id]

    def image_of(self, annotation_id: int, where: str) -> int:
        """Return the id of an annotation's image.

        Raises:
            DataError: No such annotation, or a record that names no image.
        """
        return self._annotation(annotation_id, where).image_id

    def object(self, annotation_id: int, image_id: int, where: str) -> MaskObject:
        """Return the annotated object with this id on the image `image_id`; `where` names the referring record.

        Raises:
            DataError: No such annotation, one of another image, or one whose box or mask is not COCO's or is of
                another size than its image; a mask without a pixel, or a box that does not fit its mask.
        """
        if annotation_id in self._objects and self.annotation_records[annotation_id]["image_id"] == image_id:
            return self._objects[annotation_id]
        record, where_annotation = self._annotation(annotation_id, where), f"{self.path}, annotation {annotation_id}"
        if record.image_id != image_id:
            raise DataError(
                f"{where}: annotation {annotation_id} belongs to image {record.image_id}, not to {image_id}",
                "reference",
            )
        width, height = self.image(image_id, where).size_wh
        try:
            has_box = "bbox" in record.model_fields_set
            box_alone = self._boxes_alone and has_box and record.segmentation in (None, [])
            segmentation = record.segmentation
            if isinstance(segmentation, UnparsedPolygons):
                segmentation = segmentation.parse()
            segmentation = without_degenerate(segmentation, where_annotation)
            rle = None if box_alone else from_segmentation(segmentation, (height, width))
            box = _box(record.bbox) if has_box else (rle and tight_box(rle)) or _NO_BOX
            check_box(box, (width, height), rle)
        except (ValueError, DataError) as error:
            raise DataError(f"{where_annotation}: {error}", "mask") from error
        self._objects[annotation_id] = MaskObject(f"{self._name}/ann/{annotation_id}", rle, box)
        return self._objects[annotation_id]

    def _annotation(self, annotation_id: int, where: str) -> _Annotation:
        if annotation_id not in self.annotation_records:
            raise DataError(f"{where}: {self.path} has no annotation {annotation_id}", "reference")
        record = self.annotation_records[annotation_id]
        return parse_record(_Annotation, record, f"{self.path}, annotation {annotation_id}")

    def _by_id(self, records: list[Any], key: str) -> dict[int, dict[str, Any]]:
        table: dict[int, dict[str, Any]] = {}
        for index, record in enumerate(records):
            record_id = record.get("id") if isinstance(record, dict) else None
            # Only for the error: validating each of 200,000 records takes a second.
            if type(record_id) is not int or record_id in table:
                with record_errors():
                    self._raise_bad_id(record, f"{self.path}, {key}[{index}]")
            else:
                table[record_id] = record
        return table

    @staticmethod
    def _raise_bad_id(record: Any, where: str) -> NoReturn:
        record_id = parse_record(_Identified, record, where).id
        raise DataError(f"{where}: an earlier record has the id {record_id} as well; remove one", "duplicate")


def image_path(folder: Path, name: str, where: str) -> Path:
    """Return the path of an image that a downloaded file names; `where` names the record in errors.

    Symbolic links are followed, as images are often linked from another disk.

    Raises:
        DataError: The name leaves `folder`, by `..` or as an absolute path.
    """
    if _FILE_NAME.fullmatch(name):
        return folder / name
    absolute = os.path.abspath(folder)
    if "\0" in name or not Path(os.path.normpath(os.path.join(absolute, name))).is_relative_to(absolute):
        raise DataError(
            f"{where}: the image's name {shorten(name)} leaves the folder of the images, {folder}; name it from that "
            "folder, or set `images` to a folder that holds all images",
            "image",
        )
    return folder / name


def _box(bbox: object) -> Box:
    """Convert COCO's x, y, width, height in pixels to a Box."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)) or min(bbox[2:]) < 0:
        raise DataError(f"a bbox is [x, y, width, height] in pixels; found {shorten(bbox)}", "box")
    x, y, width, height = (float(value) for value in bbox)
    return Box(x, y, x + width, y + height)
