"""Reader of Label Studio's JSON export: brush masks (RLE), polygons, ellipses and rectangles of images.

The phrases of a region are its texts (a `TextArea` with `perRegion`), or else its labels; of a region labeled `object`
in a task with one phrase, it is that one. A task's phrases are its data `phrase` and `phrases`; those without a region
have no object in the image. Tasks without an annotation are left out; of several annotations, the one marked as ground
truth is read, or the last one.

Coordinates are percent of the image's width and height; rectangles are rotated clockwise about their upper left corner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field

from sam4mllm.data.brush_rle import from_brush
from sam4mllm.data.images import IMAGE_SUFFIXES
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.readers.custom_record import CustomRecordParser
from sam4mllm.data.readers.drawn_shapes import DrawnShape, ellipse, polygon, records_of_image, rectangle
from sam4mllm.data.readers.instances import image_path
from sam4mllm.data.records import (
    Record,
    Text,
    check_not_empty,
    file_exists,
    is_number,
    parse_record,
    read_json,
    shorten,
)
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

GENERIC_LABEL = "object"
"""The label of regions whose phrase is their text, or the only phrase of their task."""

# Label Studio adds eight digits to the names of uploaded images.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
_LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")


class _Item(Record):
    id: Text | None = None
    type: Text = ""
    value: dict[str, Any] = Field(default={})
    original_width: int | None = Field(default=None, gt=0)
    original_height: int | None = Field(default=None, gt=0)
    image_rotation: float | None = None


class _Annotation(Record):
    result: list[Any]
    was_cancelled: bool | None = None
    ground_truth: bool | None = None


class LabeledTask(Record):
    """A task: its data, and its annotations."""

    data: dict[str, Any]
    id: int | Text | None = None
    annotations: list[_Annotation] = Field(default=[])

    @property
    def phrases(self) -> list[str]:
        """The phrases of the data, `phrase` and `phrases`, each once.

        Raises:
            DataError: Not text.
        """
        given = [self.data[key] for key in ("phrase", "phrases") if self.data.get(key) not in (None, "", [])]
        texts = [text for value in given for text in (value if isinstance(value, list) else [value])]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"phrase is a text, and phrases a list of texts; found {shorten(given)}", "phrase")
        return list(dict.fromkeys(check_not_empty(text) for text in texts))

    @property
    def image_url(self) -> str:
        """The URL of the image: the data `image`, or the only text in it that ends as the name of an image does.

        Raises:
            DataError: There is none, or several.
        """
        texts = {key: value for key, value in self.data.items() if isinstance(value, str)}
        if "image" in texts:
            return texts["image"]
        urls = [value for value in texts.values() if value.lower().endswith(IMAGE_SUFFIXES)]
        if len(urls) != 1:
            raise DataError(
                f"the data of a task has the URL of an image in 'image'; found {shorten(self.data)}", "image"
            )
        return urls[0]

    def annotation(self) -> _Annotation | None:
        """Return the annotation to read; None if there is none that was not cancelled."""
        valid = [each for each in self.annotations if not each.was_cancelled]
        return next((each for each in valid if each.ground_truth), valid[-1] if valid else None)


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of the annotated tasks, in order; ids are `labelstudio/{file stem}/{task}/{phrase number}`.

    Args:
        row: The data set's row of the table.
        path: The file, exported as JSON (not JSON-MIN).
        images: The folder of the images; None for the file's folder. An image is looked for by its path of local files,
            then by its name alone, with and without the digits that Label Studio adds to uploaded files.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: No such file, not such JSON; a region without area, such as a key point; no annotated task.
    """
    folder = path.parent if images is None else images
    tasks = read_json(path, "Label Studio's JSON export")
    if not isinstance(tasks, list):
        raise DataError(f"{path}: Label Studio's JSON export is a list of tasks; found {shorten(tasks)}")
    name = f"labelstudio/{path.stem}"
    parser = CustomRecordParser(name, folder, folder, f"{path}, task")
    samples: list[Sample] = []
    for number, value in enumerate(tasks, start=1):
        with record_errors(), naming(f"{path}, task {number}"):
            task = parse_record(LabeledTask, value)
            image = local_image(task.image_url, folder)
            samples += samples_of_task(task, number, image, parser, name)
        if limit is not None and len(samples) >= limit:
            break
    if not samples:
        raise DataError(f"{path}: no annotated task in it; export the project as JSON")
    return samples[:limit]


def samples_of_task(task: LabeledTask, number: int, image: Path, parser: CustomRecordParser, name: str) -> list[Sample]:
    """Return a sample for each phrase of an annotated task; none if it has no annotation.

    Args:
        task: The task.
        number: Its number, for messages.
        image: The image's path from the folder of the images.
        parser: Parses the records.
        name: The beginning of the ids.

    Raises:
        DataError: A region that is malformed, has no area or no phrase.
    """
    annotation = task.annotation()
    if annotation is None:
        return []
    phrases = task.phrases
    shapes: dict[str, list[DrawnShape]] = {phrase: [] for phrase in phrases}
    size_wh: tuple[int, int] | None = None
    for region, items in _regions(annotation).items():
        with naming(f"region {region}"):
            # Items of texts and labels may repeat the geometry, which is that of the first item.
            value = {key: each for item in reversed(items) for key, each in item.value.items()}
            of_region = next(((i.original_width, i.original_height) for i in items if i.original_width), (None, None))
            if not _has_geometry(items):
                continue
            if of_region[0] is None or of_region[1] is None:
                raise DataError("has no original_width and original_height, which its percent refer to", "field")
            size_wh = of_region[0], of_region[1]
            shape = _shape(value, size_wh, items)
            for phrase in _phrases_of(value, phrases):
                shapes.setdefault(phrase, []).append(shape)
    task_id = number if task.id is None else task.id
    records = records_of_image(str(image), size_wh, shapes, f"{name}/{task_id}")
    return [sample for record in records for sample in parser.samples(record, number)]


def local_image(url: str, folder: Path) -> Path:
    """Return the path from `folder` of the image that a task names; the first that exists, else the first one.

    Raises:
        DataError: The name leaves the folder.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    name = path.rpartition("/")[2]
    local = parse_qs(parts.query).get("d", [])
    if not parts.scheme and not path.startswith("/") and not local:
        local = [path]
    candidates = [*local, name, _UPLOAD_PREFIX.sub("", name, count=1)]
    for candidate in candidates:
        image_path(folder, candidate, "the task")
    return Path(next((each for each in candidates if file_exists(folder / each)), candidates[0]))


def _regions(annotation: _Annotation) -> dict[str, list[_Item]]:
    """Return the items of each region: its geometry, its labels and its texts have one id."""
    regions: dict[str, list[_Item]] = {}
    for number, value in enumerate(annotation.result):
        item = parse_record(_Item, value, f"result[{number}]")
        regions.setdefault(item.id or f"result[{number}]", []).append(item)
    return regions


def _has_geometry(items: list[_Item]) -> bool:
    return any({"x", "points", "rle", "vertices"} & item.value.keys() for item in items)


def _phrases_of(value: Mapping[str, Any], task_phrases: list[str]) -> list[str]:
    """Return the phrases of a region: its texts, else its labels, else the only phrase of the task."""
    text = value.get("text")
    texts = [text] if isinstance(text, str) else text or []
    if texts and all(isinstance(each, str) and each.strip() for each in texts):
        return list(texts)
    labels: list[Any] = next((value[key] for key in _LABELS if isinstance(value.get(key), list) and value[key]), [])
    if labels and (labels != [GENERIC_LABEL] or not task_phrases):
        return [check_not_empty(str(label)) for label in labels]
    if len(task_phrases) == 1:
        return task_phrases
    raise DataError(
        f"has no phrase: no text, no label, and {len(task_phrases)} phrases in the task's data; label it, or delete it",
        "phrase",
    )


def _shape(value: Mapping[str, Any], size_wh: tuple[int, int], items: list[_Item]) -> DrawnShape:
    """Return the shape of a region."""
    if any(item.image_rotation for item in items):
        raise DataError("is drawn on a rotated image; rotate the file itself, and annotate it again", "mask")
    width, height = size_wh
    if "rle" in value:
        return DrawnShape(from_brush(value["rle"], (height, width)))
    if "points" in value:
        points = value["points"]
        if not isinstance(points, list) or not all(isinstance(each, list) and len(each) == 2 for each in points):
            raise DataError(f"points is a list of [x, y] in percent; found {shorten(points)}", "mask")
        percent = [number for point in points for number in point]
        if not all(map(is_number, percent)):
            raise DataError(f"points are numbers in percent; found {shorten(points)}", "mask")
        sides = (width, height) * len(points)
        return DrawnShape(polygon([n * side / 100 for n, side in zip(percent, sides, strict=True)], size_wh))
    keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    numbers = [value.get(key) for key in (*keys, "rotation")]
    degrees = numbers.pop() or 0.0
    if not all(is_number(number) for number in [*numbers, degrees]):
        raise DataError(
            f"has no area: {', '.join(keys)} must be numbers in percent; found {shorten(dict(value))}; draw a brush, a "
            "polygon, an ellipse or a rectangle",
            "mask",
        )
    x, y, right, down = (float(n or 0) * side / 100 for n, side in zip(numbers, (width, height) * 2, strict=True))
    if "radiusX" in value:
        return DrawnShape(ellipse((x, y), (right, down), degrees, size_wh))
    return DrawnShape(None, rectangle(Box(x, y, x + right, y + down), degrees, (x, y), size_wh))
