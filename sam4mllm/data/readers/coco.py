"""Reader of custom COCO annotations with a file of phrases.

`instances.json` is COCO's (`images`, `annotations`). Each line of the file of phrases names the objects of its phrases:

    {"phrase": text | "phrases": [text, ...], "annotation_id": number | "annotation_ids": [number, ...]}
    {"phrase": text | "phrases": [text, ...], "image_id": number}          no object in this image

with an optional "id". An annotation without segmentation, or with an empty one, is a box alone.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sam4mllm.data.readers.custom_record import PhrasesRecord, samples_of_lines
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.records import parse_record
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.garbage import paused_garbage_collection


class _CocoPhrases(PhrasesRecord):
    annotation_id: int = 0
    annotation_ids: list[int] = Field(default=[])
    image_id: int | None = None


@paused_garbage_collection()
def read(
    row: DatasetRow, *, path: Path, phrases: Path, images: Path | None = None, limit: int | None = None
) -> list[Sample]:
    """Read the samples of a file of phrases, in its order; ids are the lines' own, or `coco/{its stem}/{line}`.

    Args:
        row: The data set's row of the table.
        path: COCO's instances.
        phrases: The file of phrases.
        images: The folder of the images; None for that of `path`.
        limit: The maximum number of samples, from the beginning.

    Raises:
        DataError: A file that is missing or malformed; no phrase; bad lines (all are counted, the first ten listed).
    """
    folder = path.parent if images is None else images
    instances = Instances(path, folder, f"coco/{path.stem}", boxes_alone=True)

    def samples_of(value: object, number: int) -> list[Sample]:
        return _samples(value, f"coco/{phrases.stem}/{number}", instances, f"{phrases}, line {number}")

    empty = 'no phrase in it; a line is {"phrase": text, "annotation_id": number}'
    return samples_of_lines(phrases, samples_of, limit, empty=empty)


def _samples(value: object, default_id: str, instances: Instances, source: str) -> list[Sample]:
    record = parse_record(_CocoPhrases, value)
    annotations = _annotations(record)
    image_ids = {instances.image_of(annotation, "phrase") for annotation in annotations}
    if record.image_id is not None:
        image_ids.add(record.image_id)
    if len(image_ids) != 1:
        problem = f"the annotations belong to the images {sorted(image_ids)}" if image_ids else "no image is given"
        raise DataError(
            f"a phrase is about one image: give annotation_id, annotation_ids or image_id; {problem}", "reference"
        )
    (image_id,) = image_ids
    image = instances.image(image_id, "phrase")
    objects = tuple(instances.object(annotation, image_id, "phrase") for annotation in annotations)
    return [
        Sample(sample_id, image.path, image.size_wh, phrase, objects, source=source)
        for sample_id, phrase in record.numbered_texts(default_id)
    ]


def _annotations(record: _CocoPhrases) -> tuple[int, ...]:
    """Return the annotations of the phrase's objects, each once; none for "no object"."""
    if "annotation_id" in record.model_fields_set:
        if "annotation_ids" in record.model_fields_set:
            raise DataError("annotation_id and annotation_ids are both given; keep one of them", "field")
        return (record.annotation_id,)
    return tuple(dict.fromkeys(record.annotation_ids))
