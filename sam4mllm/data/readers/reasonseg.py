"""Reader of ReasonSeg: ReasonSeg/{train,val,test}/X.jpg with X.json, drawn as LISA draws them.

A JSON file holds the texts that describe the target in its image, and the target's shapes. Training uses every text;
validation and test use only the first, as LISA does (its utils/dataset.py).
"""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sam4mllm.data.images import IMAGE_SUFFIXES, known_size_wh
from sam4mllm.data.masks import are_normalized, encode
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.records import Record, Text, file_exists, is_number, parse_record, read_json, shorten
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import box_of_mask
from sam4mllm.utils.paths import with_start

TARGET = 1
IGNORED = 255
# OpenCV walks along edges outside the image too, for as long as the coordinates are large.
_MAX_COORDINATE = 2**24


class _Annotation(Record):
    text: list[Text] = Field(min_length=1)
    shapes: list[Any]


class _Shape(Record):
    label: Text
    points: Any = None
    shape_type: Any = None


def read(
    row: DatasetRow, *, root: Path, split: str, images: Path | None = None, limit: int | None = None
) -> list[Sample]:
    """Read one split in the order of the file names; ids are `reasonseg/{split}/{stem}/{index of the text}`.

    Args:
        row: The data set's row of the table.
        root: The folder that holds `ReasonSeg`.
        split: The folder in it: `train`, `val` or `test`.
        images: The folder of the images; None if they are beside the JSON files. Each has the JSON file's stem;
            .jpg as published, or another suffix.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: No such split; an image that cannot be opened (its size is the masks' size); a file that is not an
            annotation of ReasonSeg.
    """
    folder = row.folder_in(root) / split
    files = sorted(folder.glob("*.json"), key=lambda path: path.name)
    if not files:
        folders = sorted(path.name for path in row.folder_in(root).glob("*") if path.is_dir())
        raise DataError(
            f"{with_start(folder)}: no such split, or no JSON file in it; {row.folder_in(root)} has: "
            f"{', '.join(folders) or 'none'}"
        )
    samples: list[Sample] = []
    for path in files:
        with record_errors():
            samples += _samples_of_file(path, split, folder if images is None else images)
        if limit is not None and len(samples) >= limit:
            break
    return samples[:limit]


def _samples_of_file(path: Path, split: str, images: Path) -> list[Sample]:
    content = read_json(path, "a ReasonSeg annotation", fallback_encoding="cp1252")
    annotation = parse_record(_Annotation, content, str(path))
    image = _image_of(path, images)
    size_wh = known_size_wh(image)
    if size_wh is None:
        raise DataError(f"{image}: no such image, or none that can be read; {path} needs it for its size", "image")
    labels = draw_labels(annotation.shapes, size_wh, str(path))
    _check_inside(annotation.shapes, size_wh, str(path))
    mask, ignored = labels == TARGET, labels == IGNORED
    box = box_of_mask(mask)
    objects = () if box is None else (MaskObject(f"reasonseg/{split}/{path.stem}", encode(mask), box),)
    ignore = encode(ignored) if ignored.any() else None
    with naming(str(path)):
        return [
            Sample(f"reasonseg/{split}/{path.stem}/{index}", image, size_wh, text, objects, ignore, str(path))
            for index, text in enumerate(annotation.text if split == "train" else annotation.text[:1])
        ]


def _image_of(path: Path, images: Path) -> Path:
    """Return the image of a JSON file: {stem}.jpg if it exists or no other image has this stem, else the other image.

    Raises:
        DataError: Several images have the stem, and none of them is .jpg.
    """
    usual = images / f"{path.stem}.jpg"
    if file_exists(usual) or not images.is_dir():
        return usual
    others = sorted(each for each in images.glob(f"{escape(path.stem)}.*") if each.suffix.lower() in IMAGE_SUFFIXES)
    if len(others) > 1:
        names = ", ".join(each.name for each in others)
        raise DataError(f"{path}: several files can be its image: {names} in {images}; keep one of them", "image")
    return others[0] if others else usual


def splits(row: DatasetRow, *, root: Path, images: Path | None = None) -> list[str]:
    """Return the names of the splits that have a JSON file."""
    return list(images_by_split(row, root=root))


def images_by_split(row: DatasetRow, *, root: Path, images: Path | None = None) -> dict[str, list[Path]]:
    """Return the images of every split that has a JSON file; arguments as in `read`."""
    folder = row.folder_in(root)
    return {
        split: [_image_of(path, images or folder / split) for path in files]
        for split in ("train", "val", "test")
        if (files := sorted((folder / split).glob("*.json")))
    }


def draw_labels(shapes: list[Any], size_wh: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    """Draw the label map (H, W) uint8 of an image: 1 on the target, 255 on ignored pixels, 0 elsewhere.

    Shapes labeled `flag` are skipped. Larger shapes are drawn first; of two with equal area, the first one of the file
    is drawn last. A label that contains `ignore` is drawn as 255, any other as 1 (get_mask_from_json in LISA's
    utils/data_processing.py).

    Raises:
        DataError: A shape without label or points, points that are not finite pairs, or a shape that is neither a
            polygon nor a rectangle.
    """
    width, height = size_wh
    masks = []
    for index, value in enumerate(shapes):
        where_shape = f"{where}, shape {index}"
        shape = parse_record(_Shape, value, where_shape)
        label = shape.label.lower()
        if label != "flag":
            mask = draw_polygon(_corners(shape, where_shape), size_wh)
            masks.append((int(mask.sum()), index, IGNORED if "ignore" in label else TARGET, mask))
    labels = np.zeros((height, width), dtype=np.uint8)
    for _, _, label_value, mask in sorted(masks, key=lambda entry: entry[:2], reverse=True):
        labels[mask] = label_value
    return labels


def _check_inside(shapes: list[Any], size_wh: tuple[int, int], where: str) -> None:
    """Check that no shape is outside of the image: it draws nothing, so that the target would be empty or too small.

    Raises:
        DataError: A shape is on one side of the image.
    """
    for index, value in enumerate(shapes):
        where_shape = f"{where}, shape {index}"
        shape = parse_record(_Shape, value, where_shape)
        if shape.label.lower() == "flag":
            continue
        corners = _corners(shape, where_shape)
        if (corners.max(axis=0) < 0).any() or (corners.min(axis=0) >= size_wh).any():
            raise DataError(
                f"{where_shape}: it is outside of the image of {size_wh} (width, height); correct or remove it", "mask"
            )


def draw_polygon(points: npt.NDArray[np.int32], size_wh: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Rasterize a closed polygon to a mask (H, W), bool: its inside by the even-odd rule, and its outline of one pixel.

    The calls are LISA's, so that scores are over the same pixels as elsewhere.

    Args:
        points: (N, 2) corners x, y in whole pixels, N >= 1, which name pixels; they may be outside the image.
        size_wh: Width and height of the image in pixels.
    """
    # Imported late: the modules that list data sets need no OpenCV.
    import cv2

    width, height = size_wh
    canvas = np.zeros((height, width), dtype=np.uint8)
    cv2.polylines(canvas, [points], True, 1, 1)
    cv2.fillPoly(canvas, [points], 1)
    return canvas.astype(bool)


def _corners(shape: _Shape, where: str) -> npt.NDArray[np.int32]:
    """Return the corners (N, 2) of a polygon, or of labelme's rectangle, which is stored as two opposite corners."""
    points = _points(shape.points, where)
    if shape.shape_type in (None, "polygon"):
        return points
    if shape.shape_type == "rectangle" and len(points) in (2, 4):
        (x1, y1), (x2, y2) = points[0], points[-1]
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.int32) if len(points) == 2 else points
    raise DataError(
        f"{where}: the shape_type {shorten(shape.shape_type)} with {len(points)} point(s) is not supported; draw it as "
        "a polygon, or as a rectangle of two corners",
        "mask",
    )


def _points(points: object, where: str) -> npt.NDArray[np.int32]:
    """Parse points (N, 2), x and y in pixels, truncated towards zero."""
    if not isinstance(points, list) or not points:
        raise DataError(f"{where}: a shape has a list of points; found {shorten(points)}", "mask")
    for point in points:
        if (
            not isinstance(point, list)
            or len(point) != 2
            or not all(map(is_number, point))
            or max(map(abs, point)) >= _MAX_COORDINATE
        ):
            raise DataError(f"{where}: a point is [x, y] in pixels; found {shorten(point)}", "mask")
    if are_normalized([value for point in points for value in point]):
        raise DataError(
            f"{where}: the points are normalized to the image's size (all of their numbers are from 0 to 1); give "
            "pixels",
            "mask",
        )
    return np.array(points).astype(np.int32)
