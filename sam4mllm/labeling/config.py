"""The labeling configuration of a project in Label Studio: which image it shows, and what its regions are called."""

from __future__ import annotations

from dataclasses import dataclass

from sam4mllm.data.xml_text import parse_xml
from sam4mllm.errors import DataError
from sam4mllm.export.label_studio import RegionNames

_WHERE = "the labeling configuration"


@dataclass(frozen=True, slots=True)
class LabelingConfig:
    """What the backend needs of a configuration: the names of its tags, and the key of the image in a task's data."""

    names: RegionNames
    image_key: str

    @classmethod
    def parse(cls, text: str) -> LabelingConfig:
        """Parse the XML of a configuration.

        Raises:
            DataError: Not XML; no `Image` whose value is a key of the data, or no `BrushLabels` of it.
        """
        root = parse_xml(text, _WHERE)
        image = next(root.iter("Image"), None)
        value = "" if image is None else image.get("value", "")
        if image is None or not value.startswith("$") or not image.get("name"):
            raise DataError(f'{_WHERE} has no image, such as <Image name="image" value="$image"/>; add it')
        name = image.get("name", "")
        mask = next((tag for tag in root.iter("BrushLabels") if tag.get("toName") == name), None)
        if mask is None or not mask.get("name"):
            raise DataError(
                f'{_WHERE} has no masks of its image, such as <BrushLabels name="mask" toName="{name}">; add it'
            )
        texts = [
            tag.get("name")
            for tag in root.iter("TextArea")
            if tag.get("toName") == name and tag.get("perRegion") == "true"
        ]
        labels = frozenset(tag.get("value", "") for tag in mask.iter("Label"))
        # Labels of the form value="$labels" are in the data of each task.
        names = RegionNames(name, mask.get("name", ""), texts[0] if texts else None, labels or None)
        return cls(names, value.removeprefix("$"))
