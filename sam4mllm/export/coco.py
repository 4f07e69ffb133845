"""COCO's instances.json, as pycocotools and most training programs read it.

Masks are COCO's compressed RLE with `iscrowd` 0; `score` is a field of each annotation, as in COCO's results. The
phrase is the category, or only the attribute `phrase`, with the category `object` (the field `attributes` is CVAT's).
Each image lists its phrases without an object in `no_object`, a field that other programs ignore.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam4mllm.data.masks import area
from sam4mllm.export.formats import OBJECT_LABEL, ExportOptions
from sam4mllm.export.instances import ImageInstances, Instance, phrases_of


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the file."""
    names = [OBJECT_LABEL] if options.as_attribute else phrases_of(images)
    category_of = {name: number for number, name in enumerate(names, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        for phrase in image.phrases:
            category = category_of[OBJECT_LABEL] if options.as_attribute else category_of.get(phrase.phrase, 0)
            for instance in phrase.instances:
                annotations.append(_annotation(instance, len(annotations) + 1, image_id, category, phrase.phrase))
    content = {
        "info": {"description": "predictions of sam4mllm"},
        "images": [_image(image, image_id) for image_id, image in enumerate(images, start=1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in category_of.items()],
    }
    with output.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False)


def _image(image: ImageInstances, image_id: int) -> dict[str, Any]:
    width, height = image.size_wh
    record = {"id": image_id, "file_name": image.path.as_posix(), "width": width, "height": height}
    no_object = [phrase.phrase for phrase in image.phrases if phrase.no_object]
    return {**record, "no_object": no_object} if no_object else record


def _annotation(instance: Instance, number: int, image_id: int, category: int, phrase: str) -> dict[str, Any]:
    box = instance.box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": instance.rle,
        "area": area(instance.rle),
        "bbox": [box.x1, box.y1, box.width, box.height],
        "iscrowd": 0,
        "attributes": {"phrase": phrase},
        **({} if instance.score is None else {"score": instance.score}),
    }
