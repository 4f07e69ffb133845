"""COCO annotations of one's own beside a file of phrases -> samples.

`instances.json` is COCO's (`images`, `annotations`). Each line of the phrases' file names what its phrases mean:

    {"phrase": text | "phrases": [text, ...], "annotation_id": number | "annotation_ids": [number, ...]}
    {"phrase": text | "phrases": [text, ...], "image_id": number}          nothing in this image

with an optional "id". This module knows nothing about models or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam4mllm.data.fields import require_field, shorten
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.readers.records import phrases_of, samples_of_lines
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError

_FIELDS = ("id", "phrase", "phrases", "annotation_id", "annotation_ids", "image_id")


def read(
    row: DatasetRow, *, path: Path, phrases: Path, images: Path | None = None, limit: int | None = None
) -> list[Sample]:
    """The samples of a file of phrases, in its order; ids are the lines' own, or `coco/{its stem}/{line}`.

    Args:
        path: COCO's instances.
        phrases: the file of phrases.
        images: the folder of the images, where it is not that of `path`.
        limit: at most so many samples, from the beginning.

    Raises:
        DataError: a file that is missing or not what it promises; no phrase; bad lines (all counted, the first ten told
            by line number).
    """
    instances = Instances(path, path.parent if images is None else images, f"coco/{path.stem}")

    def samples_of(value: object, number: int) -> list[Sample]:
        return _samples(value, f"coco/{phrases.stem}/{number}", instances)

    samples = samples_of_lines(phrases, samples_of, limit)
    if not samples:
        raise DataError(f'{phrases}: no phrase in it; a line is {{"phrase": text, "annotation_id": number}}')
    return samples


def _samples(value: object, default_id: str, instances: Instances) -> list[Sample]:
    record = require_field({"record": value}, "record", dict, "phrase")
    unknown = [key for key in record if key not in _FIELDS]
    if unknown:
        raise DataError(f"unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    annotations = _annotations(record)
    image_ids = {instances.image_of(annotation, "phrase") for annotation in annotations}
    if record.get("image_id") is not None:
        image_ids.add(require_field(record, "image_id", int, "phrase"))
    if len(image_ids) != 1:
        found = f"the annotations lie in the images {sorted(image_ids)}" if image_ids else "none is named"
        raise DataError(f"a phrase is about one image: give annotation_id, annotation_ids or image_id; {found}")
    (image_id,) = image_ids
    image = instances.image(image_id, "phrase")
    objects = tuple(instances.object(annotation, image_id, "phrase") for annotation in annotations)
    identity = default_id if record.get("id") is None else require_field(record, "id", str, "phrase")
    return [
        Sample(f"{identity}/{index}" if "phrases" in record else identity, image.path, image.size_wh, text, objects)
        for index, text in enumerate(phrases_of(record))
    ]


def _annotations(record: dict[str, Any]) -> tuple[int, ...]:
    """The annotations that the phrase means, each once; none for a phrase that means nothing."""
    if "annotation_id" in record:
        if "annotation_ids" in record:
            raise DataError("annotation_id and annotation_ids are both given; keep one of them")
        return (require_field(record, "annotation_id", int, "phrase"),)
    ids = record.get("annotation_ids", [])
    if not isinstance(ids, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise DataError(f"annotation_ids is a list of whole numbers; found {shorten(ids)}")
    return tuple(dict.fromkeys(ids))
