"""Reader of COCO annotations whose phrases are in the file itself, as `sam4mllm export` and labeling tools write them.

The phrase of an annotation is its attribute `phrase` (in `attributes`, a field of CVAT), or the name of its category.
All annotations of an image with one phrase are its objects; texts in an image's field `no_object` are phrases without
an object in this image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from sam4mllm.data.problems import record_errors
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.records import Record, Text, check_not_empty, parse_record
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.garbage import paused_garbage_collection


class _Phrased(Record):
    image_id: int
    category_id: int | None = None
    attributes: dict[str, Any] = Field(default={})


class _Image(Record):
    no_object: list[Text] = Field(default=[])


class _Category(Record):
    id: int
    name: Text


@paused_garbage_collection()
def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of a file, image by image; ids are `coco-categories/{file stem}/{image id}/{number}`.

    Args:
        row: The data set's row of the table.
        path: COCO's instances.
        images: The folder of the images; None for that of `path`.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: A file that is missing or malformed; an annotation without a phrase; no annotation.
    """
    name = f"{row.name}/{path.stem}"
    instances = Instances(path, path.parent if images is None else images, name, boxes_alone=True)
    categories = _category_names(instances)
    annotations: dict[int, dict[str, list[int]]] = {}
    for number, record in instances.annotation_records.items():
        with record_errors():
            parsed = parse_record(_Phrased, record, f"{path}, annotation {number}")
            phrase = _phrase_of(parsed, categories, f"{path}, annotation {number}")
            annotations.setdefault(parsed.image_id, {}).setdefault(phrase, []).append(number)
    samples: list[Sample] = []
    for image_id in dict.fromkeys([*instances.image_records, *annotations]):
        with record_errors():
            samples += _samples(instances, image_id, annotations.get(image_id, {}), name)
        if limit is not None and len(samples) >= limit:
            break
    if not annotations and not samples:
        raise DataError(f"{path}: no annotation in it")
    return samples[:limit]


def _samples(instances: Instances, image_id: int, annotations: dict[str, list[int]], name: str) -> list[Sample]:
    """Return the samples of an image from the ids of its annotations by phrase."""
    source = f"{instances.path}, image {image_id}"
    image = instances.image(image_id, "an annotation")
    record = parse_record(_Image, instances.image_records[image_id], source)
    by_phrase = {**annotations, **{check_not_empty(text, source): [] for text in record.no_object}}
    if both := sorted(set(annotations) & set(record.no_object)):
        raise DataError(f"{source}: {both[0]!r} has annotations and is in no_object; remove one of them", "phrase")
    return [
        Sample(
            f"{name}/{image_id}/{number}",
            image.path,
            image.size_wh,
            phrase,
            tuple(instances.object(each, image_id, phrase) for each in ids),
            source=source,
        )
        for number, (phrase, ids) in enumerate(by_phrase.items())
    ]


def _category_names(instances: Instances) -> dict[int, str]:
    where = f"{instances.path}, categories"
    records = (parse_record(_Category, each, where) for each in instances.categories)
    return {record.id: record.name for record in records}


def _phrase_of(record: _Phrased, categories: dict[int, str], where: str) -> str:
    """Return the phrase of an annotation.

    Raises:
        DataError: It has neither the attribute `phrase` nor a category with a name.
    """
    given = record.attributes.get("phrase")
    if isinstance(given, str) and given.strip():
        return given
    if record.category_id not in categories:
        raise DataError(
            f"{where}: has no attribute 'phrase', and no category has the id {record.category_id}", "phrase"
        )
    return check_not_empty(categories[record.category_id], where)
