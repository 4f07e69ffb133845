"""Reader of labelme's JSON: one file for each image, or a folder of them.

A shape's label is its phrase. Polygons, circles and masks are masks, rectangles are boxes; shapes of one `group_id` and
label are the parts of one object. Only the shape `mask` has holes.
"""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sam4mllm.data.images import open_image
from sam4mllm.data.masks import Rle
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.readers.custom_record import CustomRecordParser
from sam4mllm.data.readers.drawn_shapes import DrawnShape, ellipse, pasted, polygon, records_of_image, rectangle
from sam4mllm.data.readers.instances import image_path
from sam4mllm.data.records import Record, Text, check_not_empty, parse_record, read_json, shorten
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.utils.paths import with_start


class _Shape(Record):
    label: Text
    points: list[list[float]]
    # Versions before 3.2 draw polygons only.
    shape_type: Text = "polygon"
    group_id: int | Text | None = None
    mask: Text | None = None


class _File(Record):
    shapes: list[Any]
    image_path: Text = Field(alias="imagePath")
    height: int = Field(alias="imageHeight", gt=0)
    width: int = Field(alias="imageWidth", gt=0)


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of all files, in the order of their names; ids are `labelme/{file stem}/{number of the phrase}`.

    Args:
        row: The data set's row of the table.
        path: A file, or a folder, whose files `*.json` are read.
        images: The folder of the images, where they are found by their name alone; None: as the files name them, from
            the folder of each file.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: No such file, or no file in the folder; not labelme's JSON; a shape without area, such as a point; no
            shape in it.
    """
    if not path.exists():
        raise DataError(f"{with_start(path)}: no such file or folder; labelme's JSON was expected there")
    samples: list[Sample] = []
    for number, file in enumerate(sorted(path.glob("*.json")) if path.is_dir() else [path]):
        with record_errors(), naming(str(file)):
            record = parse_record(_File, read_json(file, "labelme's annotations"))
            name = record.image_path.replace("\\", "/")
            folder, name = (file.parent, name) if images is None else (images, Path(name).name)
            image_path(folder, name, "the file")
            parser = CustomRecordParser(f"labelme/{file.stem}", folder, folder, f"{file}, phrase")
            size_wh = record.width, record.height
            shapes = _shapes(record, size_wh)
            for each in records_of_image(name, size_wh, shapes, f"labelme/{file.stem}"):
                samples += parser.samples(each, number)
        if limit is not None and len(samples) >= limit:
            break
    if not samples:
        raise DataError(f"{path}: no shape in it; labelme writes a file *.json for each image")
    return samples[:limit]


def _shapes(record: _File, size_wh: tuple[int, int]) -> dict[str, list[DrawnShape]]:
    """Return the shapes of each label of a file."""
    shapes: dict[str, list[DrawnShape]] = {}
    for number, value in enumerate(record.shapes):
        with naming(f"shapes[{number}]"):
            shape = parse_record(_Shape, value)
            rle, box = _shape(shape, size_wh)
            group = None if shape.group_id is None else str(shape.group_id)
            shapes.setdefault(check_not_empty(shape.label), []).append(DrawnShape(rle, box, group))
    return shapes


def _shape(shape: _Shape, size_wh: tuple[int, int]) -> tuple[Rle | None, Box | None]:
    """Return the mask of a shape, or its box."""
    if not all(len(point) == 2 for point in shape.points):
        raise DataError(f"points is a list of [x, y]; found {shorten(shape.points)}", "mask")
    if shape.shape_type == "polygon":
        return polygon([value for point in shape.points for value in point], size_wh), None
    if shape.shape_type not in ("rectangle", "circle", "mask"):
        raise DataError(
            f"the shape {shape.shape_type!r} has no area; draw a polygon, mask, circle or rectangle, or delete it",
            "mask",
        )
    if len(shape.points) != 2:
        raise DataError(f"a {shape.shape_type} has two points; found {shorten(shape.points)}", "mask")
    (x1, y1), (x2, y2) = shape.points
    if shape.shape_type == "circle":
        # The second point is on the edge.
        radius = math.hypot(x2 - x1, y2 - y1)
        return ellipse((x1, y1), (radius, radius), 0.0, size_wh), None
    box = Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    if shape.shape_type == "rectangle":
        return None, rectangle(box, 0.0, (x1, y1), size_wh)
    return pasted(_png(shape.mask), (round(box.x1), round(box.y1)), size_wh), None


def _png(text: str | None) -> npt.NDArray[np.bool_]:
    """Decode the mask of a shape, a PNG in base64 of the size of its box: (H, W), bool."""
    try:
        with open_image(io.BytesIO(base64.b64decode(text or "", validate=True))) as image:
            pixels = np.asarray(image)
    # A damaged image may raise nearly anything: Pillow's decoders have no exception type of their own.
    except Exception as error:
        raise DataError(f"the mask of a shape is a PNG in base64; found {shorten(text)}", "mask") from error
    if pixels.ndim != 2:
        raise DataError(f"the mask of a shape has one channel; found the shape {pixels.shape}", "mask")
    return pixels != 0
