"""A folder that FiftyOne imports as `fo.types.COCODetectionDataset`: `labels.json`, with the paths of the images.

FiftyOne's importer makes each annotation a Detection with mask, label, confidence and the attribute `phrase`:

    fo.Dataset.from_dir(DIR, dataset_type=fo.types.COCODetectionDataset, label_types="segmentations")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sam4mllm.export import coco
from sam4mllm.export.formats import ExportOptions
from sam4mllm.export.instances import ImageInstances


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write `labels.json` to the folder, and the folder `data`, which the importer requires and which stays empty."""
    (output / "data").mkdir()
    coco.write([replace(image, path=image.path.absolute()) for image in images], output / "labels.json", options)
