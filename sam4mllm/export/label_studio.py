"""A folder for Label Studio: `tasks.json`, tasks with predictions, and the project's `labeling_config.xml`.

A task's data are the URL of the image and its phrases. Each mask is a brush region with its score. The label of a
region is its phrase, or `object`, with the phrase as the text of the region. URLs of local files need a storage of
local files in the project, whose root is the folder that holds all images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from sam4mllm.data.brush_rle import to_brush
from sam4mllm.data.readers.label_studio import GENERIC_LABEL
from sam4mllm.export.formats import ExportOptions
from sam4mllm.export.instances import ImageInstances, Instance, PhraseInstances, phrases_of, unique_names

MODEL_VERSION = "sam4mllm"
IMAGE, MASK, TEXT = "image", "mask", "phrase"
"""The names of the image, of the labels and of the regions' text in the configuration that is written."""


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the files to the folder."""
    tasks = [
        {
            "data": {
                "image": options.url_prefix + quote(name.as_posix()),
                "phrases": list(dict.fromkeys(phrase.phrase for phrase in image.phrases)),
            },
            "predictions": [prediction(image.phrases, image.size_wh, options.as_attribute)],
        }
        for image, name in zip(images, unique_names(images), strict=True)
    ]
    with (output / "tasks.json").open("w", encoding="utf-8") as file:
        json.dump(tasks, file, ensure_ascii=False, allow_nan=False)
    (output / "labeling_config.xml").write_text(labeling_config(images, options.as_attribute), encoding="utf-8")


def prediction(
    phrases: Iterable[PhraseInstances],
    size_wh: tuple[int, int],
    as_attribute: bool,
    names: tuple[str, str, str] | None = None,
) -> dict[str, Any]:
    """Return a prediction of one image: a brush region for each instance, and the mean of their scores.

    Args:
        phrases: The phrases with their instances.
        size_wh: The size of the image.
        as_attribute: Whether the phrase is the text of a region, with the label `object`, or the label.
        names: The names in the project's configuration of the image, the brush labels and the text of regions; None for
            those of `labeling_config`.
    """
    image, mask, text = names or (IMAGE, MASK, TEXT)
    result: list[dict[str, Any]] = []
    scores: list[float] = []
    for phrase in phrases:
        for number, instance in enumerate(phrase.instances):
            digest = hashlib.sha256(f"{phrase.id}\n{phrase.phrase}\n{number}".encode()).hexdigest()[:10]
            common = {
                "id": digest,
                "to_name": image,
                "original_width": size_wh[0],
                "original_height": size_wh[1],
                "image_rotation": 0,
                **({} if instance.score is None else {"score": instance.score}),
            }
            label = GENERIC_LABEL if as_attribute else phrase.phrase
            value = {"format": "rle", "rle": to_brush(instance.rle), "brushlabels": [label]}
            result.append({**common, "from_name": mask, "type": "brushlabels", "value": value})
            if as_attribute:
                result.append({**common, "from_name": text, "type": "textarea", "value": {"text": [phrase.phrase]}})
            scores += _score(instance)
    mean = {"score": sum(scores) / len(scores)} if scores else {}
    return {"model_version": MODEL_VERSION, "result": result, **mean}


def labeling_config(images: Sequence[ImageInstances], as_attribute: bool) -> str:
    """Return the configuration of a project in which the file can be imported."""
    view = Element("View")
    SubElement(view, "Image", name=IMAGE, value="$image", zoom="true")
    labels = SubElement(view, "BrushLabels", name=MASK, toName=IMAGE)
    for label in [GENERIC_LABEL] if as_attribute else phrases_of(images):
        SubElement(labels, "Label", value=label)
    if as_attribute:
        SubElement(view, "TextArea", name=TEXT, toName=IMAGE, perRegion="true", editable="true")
    indent(view)
    return tostring(view, encoding="unicode")


def _score(instance: Instance) -> list[float]:
    return [] if instance.score is None else [instance.score]
