"""Data sets of the Hub's library `datasets`: a folder made by `save_to_disk`, or an id of the Hub -> samples.

A row is a record of `records.py`, under the names that such data sets use:

    image    image                        an Image, or the path of one
    phrase   phrase, phrases              a text, or a list of texts
    masks    masks                        each an Image, run lengths, polygons or a path; a list of polygons is several
             mask, segmentation           the same, but a list of polygons is one mask
    boxes    boxes                        each [x1, y1, x2, y2]
             bbox                         each as COCO has it, [x, y, width, height]
    id       id                           a text or a number

Masks and boxes are one or a list, as the value shows. The first column that is there counts; `columns` tells which of
these names a column stands for that is called otherwise. An image that is stored within the data set is written once
to a file named by its content, for every stage takes images from files. This module knows nothing about models or
scores.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sam4mllm.data.fields import shorten
from sam4mllm.data.readers.records import Records, mask_of_image, note_ids
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "phrase": ("phrase", "phrases"),
    "masks": ("masks", "mask", "segmentation"),
    "boxes": ("boxes", "bbox"),
    "id": ("id",),
}
"""The names that a column may have, or be given, for each thing that a row tells."""


def read(
    row: DatasetRow,
    *,
    path: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    images: Path | None = None,
    limit: int | None = None,
) -> list[Sample]:
    """The samples of a data set, in the order of its rows; ids are the rows' own, or `hub/{name}/{row}`.

    Args:
        path: a folder made by `save_to_disk`, or an id of the Hub.
        split: which split; None where the folder holds one data set.
        columns: the data set's column for a name of `COLUMNS`, where it is called otherwise.
        images: the folder from which paths of images start, and to which stored images are written; None for the
            data set's folder and the library's cache.
        limit: at most so many samples, from the beginning.

    Raises:
        DataError: no such data set, split or column; a row that is not what its columns promise.
    """
    rows = _load(path, split)
    names = _columns_of(rows.column_names, columns or {}, f"{path}")
    name = f"hub/{path.name}" if split is None else f"hub/{path.name}/{split}"
    records = Records(name, path if images is None else images, path)
    store = (images if images is not None else _cache()).absolute()
    samples: list[Sample] = []
    first_rows: dict[str, int] = {}
    # Arrow's own form decodes no image: images come as they are stored, as bytes or paths.
    for number, item in enumerate(rows.select_columns(list(names.values())).with_format("arrow")):
        try:
            record = _record(item.to_pylist()[0], names, store)
            image = Path(record["image"])
            # A stored image is named by its content: where it is written to has no part in the objects' ids.
            found = records.samples(record, number, image.name if image.parent == store else None)
        except (DataError, ValueError) as error:
            raise DataError(f"{path}, row {number}: {error}") from error
        if faults := note_ids(found, number, first_rows):
            raise DataError(f"{path}: {faults[0].replace('line', 'row')}")
        samples += found
        if limit is not None and len(samples) >= limit:
            break
    if not samples:
        raise DataError(f"{path}: no row in it")
    return samples[:limit]


def _load(path: Path, split: str | None) -> Any:
    """The data set, or its split."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path)) if path.is_dir() else datasets.load_dataset(str(path))
    # What the library raises for a missing folder, an unknown id, no network, damaged files or a set that is a script.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: no data set of `datasets` ({first}); give a folder made by save_to_disk, or an id of the Hub"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{path}: the split {split!r} is not there; it has: {', '.join(found)}")
        found = found[split]
    elif split is not None:
        raise DataError(f"{path}: is one data set without splits; leave split={split!r} out")
    return found


def _columns_of(there: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """The data set's column for each name of `COLUMNS` that it has, at most one for each thing that a row tells.

    Raises:
        DataError: a column that is not there; none for the image or the phrase; two for one thing.
    """
    if missing := [column for column in given.values() if column not in there]:
        raise DataError(f"{where}: there is no column {missing[0]!r}; it has: {', '.join(there)}")
    names: dict[str, str] = {}
    for thing, forms in COLUMNS.items():
        named = [form for form in forms if form in given]
        if len(named) > 1:
            raise DataError(f"{where}: columns names both {' and '.join(named)}, which tell the same; keep one of them")
        usual = [form for form in forms if form in there]
        if not named and not usual and thing in ("image", "phrase"):
            raise DataError(
                f"{where}: no column {' or '.join(forms)}; name it as columns.{thing}; it has: {', '.join(there)}"
            )
        names |= {form: given.get(form, form) for form in (named or usual)[:1]}
    return names


def _record(row: Mapping[str, Any], names: Mapping[str, str], store: Path) -> dict[str, Any]:
    """The row as a record of `records.py`."""
    record: dict[str, Any] = {}
    for form, column in names.items():
        value = row[column]
        if form == "image":
            record["image"] = _image_path(value, store)
        elif form in COLUMNS["phrase"]:
            record["phrases" if isinstance(value, list) else "phrase"] = value
        elif value is None:
            continue
        elif form in COLUMNS["masks"]:
            record["masks"] = [_mask(mask) for mask in (value if _several_masks(value, form) else [value])]
        elif form in COLUMNS["boxes"]:
            boxes = value if isinstance(value, list) and (not value or isinstance(value[0], list)) else [value]
            record["boxes"] = [_corners(box) for box in boxes] if form == "bbox" else boxes
        else:
            record["id"] = str(value)
    return record


def _image_path(value: object, store: Path) -> str:
    """The image as a path; one that is stored within the data set is written to the folder `store` first."""
    if isinstance(value, str):
        return value
    content = value.get("bytes") if isinstance(value, dict) else None
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        if path is None:
            raise DataError(f"an image is an image or the path of one; found {shorten(value)}")
        return str(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            ending = (image.format or "png").lower()
    # As in images.py: a damaged image may raise nearly anything.
    except Exception as error:
        raise DataError(f"the image is not an image that can be read: {error}") from error
    file = store / f"{hashlib.sha256(content).hexdigest()}.{ending}"
    if not file.is_file():
        store.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as unfinished:
            unfinished.write_bytes(content)
    return str(file)


def _several_masks(value: object, form: str) -> bool:
    """Whether a value is a list of masks; what a list of polygons is, the column's form says."""
    if not isinstance(value, list):
        return False
    first = value[0] if value else None
    if form == "masks":
        return not isinstance(first, int | float)
    return isinstance(first, dict | str) or (isinstance(first, list) and bool(first) and isinstance(first[0], list))


def _mask(value: object) -> object:
    """A mask as `records.py` reads it: stored images become run lengths, counts in bytes become text."""
    if isinstance(value, dict) and "counts" in value:
        counts = value["counts"]
        return {**value, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    if isinstance(value, dict) and value.get("bytes") is not None:
        return mask_of_image(io.BytesIO(value["bytes"]))
    return value["path"] if isinstance(value, dict) and value.get("path") is not None else value


def _corners(bbox: object) -> object:
    """COCO's [x, y, width, height] as [x1, y1, x2, y2]; anything else as it is, for the check to come."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(each, int | float) for each in bbox):
        return bbox
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def _cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "sam4mllm-images"
