"""Reader of data sets of the Hub's library `datasets`.

A data set is a folder made by `save_to_disk`, a folder of Parquet files, a folder of images with their metadata
(`imagefolder`), a Parquet file, or an id of the Hub.

A row is a record of `custom_record.py`, with the column names that such data sets use:

    image    image                        an Image, or the path of one
    phrase   phrase, phrases              a text, or a list of texts
    masks    masks                        each an Image, an RLE, polygons or a path; a list of polygons is several masks
             mask, segmentation           the same, but a list of polygons is one mask
    boxes    boxes                        each [x1, y1, x2, y2]
             bbox                         each in COCO's form, [x, y, width, height]
    id       id                           a text or a number

Masks and boxes are one or a list, depending on the value. If a data set has several of the columns for one part, the
first is used; `columns` maps these names to the data set's own. A set in which no phrase has an object is rejected,
because its masks are probably in a column of another name, unless `columns` maps "masks" or "boxes" to "". An image
that is stored within the data set is written once to a file that is named by its content, because all stages load
images from files.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.data.images import open_image
from sam4mllm.data.masks import mask_of_image
from sam4mllm.data.problems import record_errors
from sam4mllm.data.readers.custom_record import CustomRecordParser, duplicate_ids
from sam4mllm.data.records import shorten
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path
from sam4mllm.utils.hub import use_cache_if_unreachable

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "phrase": ("phrase", "phrases"),
    "masks": ("masks", "mask", "segmentation"),
    "boxes": ("boxes", "bbox"),
    "id": ("id",),
}
"""The names that a column may have, or be mapped to, for each part of a row."""

_SAVED_TO_DISK = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files in a folder made by `save_to_disk`, of a data set or of several splits."""

_OBJECT_PARTS = ("masks", "boxes")
_NAME_OBJECTS = (
    "name the column of the masks as columns.masks or columns.mask, or that of the boxes as columns.boxes or "
    'columns.bbox; if no phrase has an object, set columns.masks to ""; the columns are: '
)
_NO_ROW = "{}: there is no row in it; a row has an image and a phrase"


def read(
    row: DatasetRow,
    *,
    path: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    images: Path | None = None,
    limit: int | None = None,
) -> list[Sample]:
    """Read the samples of a data set, in the order of its rows; ids are the rows' own, or `hub/{name}/{row}`.

    Args:
        row: The data set's row of the table.
        path: A folder or a Parquet file in one of the forms above, or an id of the Hub.
        split: The split; None if the data set has one split or none.
        columns: The data set's own names for columns of `COLUMNS`, where they differ; "" for one that is not read.
        images: The folder that relative image paths start from, and that stored images are written to; None for the
            data set's folder and the library's cache.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: No such data set, split or column; no row; an invalid row; no object in any row.
    """
    rows = _load(path, split)
    if not len(rows):
        raise DataError(_NO_ROW.format(path))
    names = _columns_of(rows.column_names, columns or {}, f"{path}")
    name = f"hub/{path.name}" if split is None else f"hub/{path.name}/{split}"
    parser = CustomRecordParser(name, path if images is None else images, path, f"{path}, row")
    store = (images if images is not None else _cache()).absolute()
    samples: list[Sample] = []
    first_rows: dict[str, int] = {}
    # In Arrow's format images are not decoded, but returned as they are stored, as bytes or paths.
    for number, item in enumerate(rows.select_columns(list(names.values())).with_format("arrow")):
        with record_errors():
            try:
                record = _record(item.to_pylist()[0], names, store)
                image = Path(record["image"])
                # A stored image is named by its content; its folder is not part of the objects' ids.
                of_row = parser.samples(record, number, image.name if image.parent == store else None)
                if problems := duplicate_ids(of_row, number, first_rows, "row"):
                    raise problems[0]
            except (DataError, ValueError) as error:
                raise DataError(f"{path}, row {number}: {error}") from error
            samples += of_row
        if limit is not None and len(samples) >= limit:
            break
    if limit is None and not _states_no_objects(columns or {}) and not any(sample.objects for sample in samples):
        read_columns = ", ".join(names[form] for part in _OBJECT_PARTS for form in COLUMNS[part] if form in names)
        raise DataError(
            f"{path}: no row has an object in {read_columns}; {_NAME_OBJECTS}{', '.join(rows.column_names)}"
        )
    return samples[:limit]


def _load(path: Path, split: str | None) -> Any:
    """Load the data set, or its split."""
    import datasets

    if not path.exists():
        use_cache_if_unreachable()
    try:
        if path.is_dir() and any((path / name).is_file() for name in _SAVED_TO_DISK):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file() and path.suffix == ".parquet":
            loaded = datasets.load_dataset("parquet", data_files=str(path))
        else:
            loaded = datasets.load_dataset(str(path))
    # The library raises this for a saved data set of no file, which it writes for one of no row.
    except IndexError as error:
        raise DataError(_NO_ROW.format(path)) from error
    # The library raises these for a missing folder, an unknown id, no network, damaged files and dataset scripts.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: not a data set of `datasets` ({first}); give a folder made by save_to_disk, a folder of Parquet "
            "files or of images with metadata, a Parquet file, or an id of the Hub"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            return next(iter(loaded.values()))
        if split not in loaded:
            raise DataError(f"{path}: there is no split {split!r}; it has: {', '.join(loaded)}")
        loaded = loaded[split]
    elif split is not None:
        raise DataError(f"{path}: is one data set without splits; leave split={split!r} out")
    return loaded


def _columns_of(existing: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the data set's column for the names of `COLUMNS` that it has, at most one for each part of a row.

    Raises:
        DataError: A given column that does not exist; none for the image, the phrase or the objects; two for one part.
    """
    if missing := [column for column in given.values() if column and column not in existing]:
        raise DataError(f"{where}: there is no column {missing[0]!r}; it has: {', '.join(existing)}")
    names: dict[str, str] = {}
    for part, forms in COLUMNS.items():
        named = [form for form in forms if form in given]
        if len(named) > 1:
            raise DataError(
                f"{where}: columns names both {' and '.join(named)}, which have the same meaning; keep one of them"
            )
        if named and not given[named[0]]:
            if part in ("image", "phrase"):
                raise DataError(f"{where}: columns.{named[0]} is empty, but every row has an image and a phrase")
            continue
        usual = [form for form in forms if form in existing]
        if not named and not usual and part in ("image", "phrase"):
            raise DataError(
                f"{where}: no column {' or '.join(forms)}; name it as columns.{part}; it has: {', '.join(existing)}"
            )
        names |= {form: given.get(form, form) for form in (named or usual)[:1]}
    if not _states_no_objects(given) and not any(form in names for part in _OBJECT_PARTS for form in COLUMNS[part]):
        raise DataError(f"{where}: there is no column of masks or boxes; {_NAME_OBJECTS}{', '.join(existing)}")
    return names


def _states_no_objects(given: Mapping[str, str]) -> bool:
    """Return whether `columns` states that the data set has no masks or no boxes."""
    return any(given.get(form) == "" for part in _OBJECT_PARTS for form in COLUMNS[part])


def _record(row: Mapping[str, Any], names: Mapping[str, str], store: Path) -> dict[str, Any]:
    """Return the row as a record of `custom_record.py`."""
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
    """Return the image's path; one that is stored within the data set is written to the folder `store` first."""
    if isinstance(value, str):
        return value
    content = value.get("bytes") if isinstance(value, dict) else None
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        if path is None:
            raise DataError(f"the column image holds neither an image nor a path; found {shorten(value)}", "image")
        return str(path)
    try:
        with open_image(io.BytesIO(content)) as image:
            extension = (image.format or "png").lower()
    # As in images.py: a damaged image may raise nearly anything.
    except Exception as error:
        raise DataError(f"the image cannot be read: {error}", "image") from error
    file = store / f"{hashlib.sha256(content).hexdigest()}.{extension}"
    if not file.is_file():
        store.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as unfinished:
            unfinished.write_bytes(content)
    return str(file)


def _several_masks(value: object, form: str) -> bool:
    """Return whether a value is a list of masks; for a list of polygons, this depends on the column's form."""
    if not isinstance(value, list):
        return False
    first = value[0] if value else None
    if form == "masks":
        return not isinstance(first, int | float)
    return isinstance(first, dict | str) or (isinstance(first, list) and bool(first) and isinstance(first[0], list))


def _mask(value: object) -> object:
    """Return a mask in a form of `custom_record.py`: stored images become an RLE, counts in bytes become text."""
    if isinstance(value, dict) and "counts" in value:
        counts = value["counts"]
        return {**value, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    if isinstance(value, dict) and value.get("bytes") is not None:
        return mask_of_image(io.BytesIO(value["bytes"]))
    return value["path"] if isinstance(value, dict) and value.get("path") is not None else value


def _corners(bbox: object) -> object:
    """Convert COCO's [x, y, width, height] to [x1, y1, x2, y2]; return anything else as it is, to be rejected later."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(each, int | float) for each in bbox):
        return bbox
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def _cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "sam4mllm-images"
