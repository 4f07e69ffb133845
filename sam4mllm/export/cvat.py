"""A folder for CVAT: `annotations.xml`, in the format "CVAT for images 1.1", and `labels.json`, the task's labels.

Each instance is a `mask` element with row-wise RLE. `labels.json` can be pasted where a task's labels are edited as
text.

The phrase is the label, or the attribute `phrase` of the label `object`; the score is the attribute `score`. With
attributes, an image has a tag `no object` for each phrase to which the model answered so. Images are named from the
folder that holds all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from sam4mllm.data.masks import decode
from sam4mllm.data.readers.cvat import NO_OBJECT, PHRASE
from sam4mllm.data.rle_runs import run_lengths
from sam4mllm.errors import PredictionsError
from sam4mllm.export.formats import OBJECT_LABEL, ExportOptions
from sam4mllm.export.instances import ImageInstances, Instance, phrases_of, unique_names

_SCORE = "score"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the files to the folder.

    Raises:
        PredictionsError: A phrase holds a control character, which XML cannot.
    """
    labels = _labels(images, options)
    (output / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), encoding="utf-8")
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    _add_meta(root, len(images), labels)
    for number, (image, name) in enumerate(zip(images, unique_names(images), strict=True)):
        width, height = image.size_wh
        element = SubElement(root, "image", id=str(number), name=name.as_posix(), width=str(width), height=str(height))
        for phrase in image.phrases:
            if _CONTROL.search(phrase.phrase):
                raise PredictionsError(f"{phrase.id!r}: XML cannot hold the control character in {phrase.phrase!r:.80}")
            if phrase.no_object and options.as_attribute:
                _add_attribute(SubElement(element, "tag", label=NO_OBJECT, source="auto"), PHRASE, phrase.phrase)
            for instance in phrase.instances:
                mask = _add_mask(element, instance, OBJECT_LABEL if options.as_attribute else phrase.phrase)
                if options.as_attribute:
                    _add_attribute(mask, PHRASE, phrase.phrase)
                if instance.score is not None:
                    _add_attribute(mask, _SCORE, f"{instance.score:g}")
    indent(root)
    ElementTree(root).write(output / "annotations.xml", encoding="utf-8", xml_declaration=True)


def _labels(images: Sequence[ImageInstances], options: ExportOptions) -> list[dict[str, Any]]:
    """Return the labels with their attributes, in the form of CVAT's editor of labels as text."""
    names = (OBJECT_LABEL, NO_OBJECT) if options.as_attribute else phrases_of(images)
    attributes = (PHRASE, _SCORE) if options.as_attribute else (_SCORE,)
    return [
        {
            "name": name,
            "type": "tag" if options.as_attribute and name == NO_OBJECT else "mask",
            "attributes": [
                {"name": each, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
                for each in attributes
            ],
        }
        for name in names
    ]


def _add_meta(root: Element, count: int, labels: Sequence[dict[str, Any]]) -> None:
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "size").text = str(count)
    SubElement(task, "mode").text = "annotation"
    described = SubElement(task, "labels")
    for label in labels:
        element = SubElement(described, "label")
        SubElement(element, "name").text = label["name"]
        SubElement(element, "type").text = label["type"]
        attributes = SubElement(element, "attributes")
        for attribute in label["attributes"]:
            each = SubElement(attributes, "attribute")
            for key, value in attribute.items():
                SubElement(each, key).text = "\n".join(value) if key == "values" else str(value)


def _add_attribute(element: Element, name: str, text: str) -> None:
    SubElement(element, "attribute", name=name).text = text


def _add_mask(image: Element, instance: Instance, label: str) -> Element:
    """Add a mask: the runs of its box, row by row, beginning with those of 0."""
    left, top, right, bottom = (int(side) for side in instance.box)
    pixels = decode(instance.rle)[top:bottom, left:right].reshape(-1)
    runs = run_lengths(pixels).tolist()
    return SubElement(
        image,
        "mask",
        label=label,
        source="auto",
        occluded="0",
        rle=", ".join(map(str, [0, *runs] if pixels[0] else runs)),
        left=str(left),
        top=str(top),
        width=str(right - left),
        height=str(bottom - top),
        z_order="0",
    )
