"""A folder for Label Studio: `tasks.json`, tasks with predictions, and the project's `labeling_config.xml`.

A task's data are the URL of the image and its phrases. Each mask is a brush region with its score. The label of a
region is its phrase, or `object`, with the phrase as the text of the region. Paths in URLs of local files begin at
Label Studio's document root, and the project needs a storage of local files for a folder below it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from sam4mllm.data.brush_rle import to_brush
from sam4mllm.data.readers.label_studio import GENERIC_LABEL
from sam4mllm.data.records import shorten
from sam4mllm.errors import DataError
from sam4mllm.export.formats import ExportOptions
from sam4mllm.export.instances import ImageInstances, PhraseInstances, phrases_of, unique_names

MODEL_VERSION = "sam4mllm"
IMAGE, MASK, TEXT = "image", "mask", "phrase"
"""The names of the image, of the labels and of the regions' text in the configuration that is written."""


@dataclass(frozen=True, slots=True)
class RegionNames:
    """The names in the configuration of a project that regions refer to.

    image, mask: the image and its brush labels.
    text: the text of regions (a `TextArea` with `perRegion`); None if there is none.
    labels: the labels; None if any text may be a label.
    """

    image: str = IMAGE
    mask: str = MASK
    text: str | None = None
    labels: frozenset[str] | None = None

    def label_of(self, phrase: str) -> str:
        """Return the label of a phrase's regions: the phrase, or `object` if it is not a label.

        Raises:
            DataError: Neither is a label.
        """
        if self.labels is None or phrase in self.labels:
            return phrase
        if GENERIC_LABEL not in self.labels:
            raise DataError(
                f"the labeling configuration has neither the label {shorten(phrase)} nor {GENERIC_LABEL!r}; add one"
            )
        return GENERIC_LABEL


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the files to the folder."""
    names = RegionNames(text=TEXT, labels=frozenset([GENERIC_LABEL])) if options.as_attribute else RegionNames()
    tasks = [
        {
            "data": {
                "image": options.url_prefix + quote(name.as_posix()),
                "phrases": list(dict.fromkeys(phrase.phrase for phrase in image.phrases)),
            },
            "predictions": [prediction(image.phrases, image.size_wh, names, MODEL_VERSION)],
        }
        for image, name in zip(images, unique_names(images), strict=True)
    ]
    with (output / "tasks.json").open("w", encoding="utf-8") as file:
        json.dump(tasks, file, ensure_ascii=False, allow_nan=False)
    (output / "labeling_config.xml").write_text(labeling_config(images, options.as_attribute), encoding="utf-8")


def prediction(
    phrases: Iterable[PhraseInstances], size_wh: tuple[int, int], names: RegionNames, model_version: str
) -> dict[str, Any]:
    """Return a prediction of one image of `size_wh` pixels: a brush region for each instance, and their mean score.

    Raises:
        DataError: The configuration has no label for a phrase.
    """
    result: list[dict[str, Any]] = []
    scores: list[float] = []
    for phrase in phrases:
        label = names.label_of(phrase.phrase)
        for number, instance in enumerate(phrase.instances):
            digest = hashlib.sha256(f"{phrase.id}\n{phrase.phrase}\n{number}".encode()).hexdigest()[:10]
            common = {
                "id": digest,
                "to_name": names.image,
                "original_width": size_wh[0],
                "original_height": size_wh[1],
                "image_rotation": 0,
                **({} if instance.score is None else {"score": instance.score}),
            }
            value = {"format": "rle", "rle": to_brush(instance.rle), "brushlabels": [label]}
            result.append({**common, "from_name": names.mask, "type": "brushlabels", "value": value})
            if label == GENERIC_LABEL and names.text is not None:
                text = {"text": [phrase.phrase]}
                result.append({**common, "from_name": names.text, "type": "textarea", "value": text})
            scores += [] if instance.score is None else [instance.score]
    mean = {"score": sum(scores) / len(scores)} if scores else {}
    return {"model_version": model_version, "result": result, **mean}


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
