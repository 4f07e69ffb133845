"""Reader of CVAT's XML, exported as "CVAT for images 1.1".

The phrase of a shape is its attribute `phrase`, or its label if it has none. Masks (RLE), polygons and ellipses are
masks, boxes are boxes; shapes of one `group_id` and phrase are the parts of one object. A tag `no object` with the
attribute `phrase` is a phrase without an object; other tags are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from sam4mllm.data.file_kinds import HEAD_BYTES, wrong_kind
from sam4mllm.data.masks import Rle
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.readers.custom_record import CustomRecordParser
from sam4mllm.data.readers.drawn_shapes import DrawnShape, ellipse, pasted, polygon, records_of_image, rectangle
from sam4mllm.data.readers.instances import image_path
from sam4mllm.data.records import check_not_empty, shorten
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.data.xml_text import parse_xml
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.utils.paths import with_start

PHRASE = "phrase"
"""The attribute of a shape that holds its phrase."""

NO_OBJECT = "no object"
"""The label of the tag whose attribute `phrase` refers to no object in the image."""


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of a file, in its order; ids are `cvat/{file stem}/{id of the image}/{number of the phrase}`.

    Args:
        row: The data set's row of the table.
        path: The file `annotations.xml`.
        images: The folder of the images; None for the file's folder.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: No such file, not such XML; a shape without area, such as points or a track; no shape in it.
    """
    folder = path.parent if images is None else images
    parser = CustomRecordParser(f"cvat/{path.stem}", folder, folder, f"{path}, image")
    samples: list[Sample] = []
    for number, image in enumerate(_parse(path).iter("image")):
        with record_errors(), naming(f"{path}, image {image.get('name')!r}"):
            name = _text(image, "name")
            image_path(folder, name, "the file")
            size_wh = int(_number(image, "width")), int(_number(image, "height"))
            shapes = _shapes(image, size_wh)
            for record in records_of_image(name, size_wh, shapes, f"cvat/{path.stem}/{image.get('id', number)}"):
                samples += parser.samples(record, number)
        if limit is not None and len(samples) >= limit:
            break
    if not samples:
        raise DataError(f"{path}: no shape in it; export the task as CVAT for images 1.1")
    return samples[:limit]


def _parse(path: Path) -> Element:
    if not path.is_file():
        raise DataError(f"{with_start(path)}: no such file; CVAT's annotations.xml was expected there")
    content = path.read_bytes()
    head = content[:HEAD_BYTES]
    if not head.lstrip().startswith(b"<") and (kind := wrong_kind(head)):
        raise DataError(f"{path}: {kind} (CVAT's XML was expected)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: CVAT's XML must be UTF-8: {error}") from error
    root = parse_xml(text, str(path))
    if root.tag != "annotations" or root.find("track") is not None:
        found = "tracks of a video" if root.tag == "annotations" else f"the element {root.tag!r}"
        raise DataError(f"{path}: holds {found}; export the task as CVAT for images 1.1")
    return root


def _shapes(image: Element, size_wh: tuple[int, int]) -> dict[str, list[DrawnShape]]:
    """Return the shapes of each phrase of an image."""
    shapes: dict[str, list[DrawnShape]] = {}
    for element in image:
        attributes = {each.get("name"): each.text or "" for each in element.iter("attribute")}
        label = _text(element, "label")
        if element.tag == "tag":
            if label == NO_OBJECT and PHRASE in attributes:
                shapes.setdefault(check_not_empty(attributes[PHRASE]), [])
            continue
        phrase = check_not_empty(attributes.get(PHRASE, "").strip() or label)
        group = element.get("group_id")
        with naming(f"the {element.tag} of {shorten(phrase)}"):
            rle, box = _shape(element, size_wh)
        shapes.setdefault(phrase, []).append(DrawnShape(rle, box, None if group in (None, "0") else group))
    return shapes


def _shape(element: Element, size_wh: tuple[int, int]) -> tuple[Rle | None, Box | None]:
    """Return the mask of a shape, or its box."""
    degrees = _number(element, "rotation") if element.get("rotation") else 0.0
    if element.tag == "mask":
        width, height = int(_number(element, "width")), int(_number(element, "height"))
        left_top = int(_number(element, "left")), int(_number(element, "top"))
        return pasted(_pixels(_text(element, "rle"), width, height, size_wh), left_top, size_wh), None
    if element.tag == "polygon":
        numbers = _text(element, "points").replace(";", ",").split(",")
        return polygon([_float(number) for number in numbers], size_wh), None
    if element.tag == "ellipse":
        center, radii = ((_number(element, x), _number(element, y)) for x, y in (("cx", "cy"), ("rx", "ry")))
        return ellipse(center, radii, degrees, size_wh), None
    if element.tag == "box":
        box = Box(*(_number(element, side) for side in ("xtl", "ytl", "xbr", "ybr")))
        middle = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
        return None, rectangle(box, degrees, middle, size_wh)
    raise DataError("has no area; draw a mask, a polygon, an ellipse or a rectangle, or delete it", "mask")


def _pixels(
    rle: str, width: int, height: int, size_wh: tuple[int, int]
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Decode the runs of a mask's box, row by row, the first of them of 0: (height, width), bool."""
    runs = list(_integers(rle))
    if not 0 < width <= size_wh[0] or not 0 < height <= size_wh[1] or min(runs) < 0 or sum(runs) != width * height:
        raise DataError(
            f"the runs of a mask must fill its box of {(width, height)} (width, height) in the image of {size_wh}; "
            f"found the sum {sum(runs)}",
            "mask",
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _integers(text: str) -> Iterator[int]:
    for number in text.split(","):
        yield int(_float(number))


def _text(element: Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        raise DataError(f"the element {element.tag} has no {name!r}", "field")
    return value


def _number(element: Element, name: str) -> float:
    return _float(_text(element, name))


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"expected a number; found {shorten(text)}", "field") from None
    if not math.isfinite(value) or abs(value) > 1e9:
        raise DataError(f"expected a finite number; found {shorten(text)}", "field")
    return value
