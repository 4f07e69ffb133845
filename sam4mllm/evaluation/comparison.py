"""Comparison of several answers to the same phrases: drawings side by side, and the phrases for which points decide.

Where two objects share a box, the box does not identify the object, so SAM needs the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from sam4mllm.data.images import load_image
from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictionLine
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.viz.drawing import overlay, panels

SHARED_BOX_IOU = 0.5
"""Two objects share a box if the IoU of their boxes is above this."""


def objects_sharing_boxes(samples: Sequence[Sample]) -> set[str]:
    """Return the ids of the objects that share their box with another object of the same image.

    All objects that a phrase of `samples` refers to are compared. Objects with equal masks are the same object, which
    several data sets may annotate under different ids.
    """
    by_image: dict[Path, dict[str, MaskObject]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, {}).update({item.id: item for item in sample.objects})
    return {
        item.id
        for objects in by_image.values()
        for item in objects.values()
        if any(other.rle != item.rle and other.box.iou(item.box) > SHARED_BOX_IOU for other in objects.values())
    }


def choose_decided_by_points(
    samples: Sequence[Sample],
    with_points: Mapping[str, SentenceScore],
    box_alone: Mapping[str, SentenceScore],
    count: int,
) -> list[Sample]:
    """Choose at most `count` samples whose IoU differs most between the masks with points and of the box alone.

    Points may raise or lower the IoU. Only samples with an object that shares its box with another one are chosen, and
    one of each image at most, the largest difference first; among equal ones, the earlier sample.

    Args:
        samples: The samples, of one or several data sets.
        with_points: The score of each sentence by id, of the masks that SAM predicts from boxes and points.
        box_alone: The same, of the masks for the same boxes without points.
        count: The largest number of samples.
    """
    sharing = objects_sharing_boxes(samples)
    differences = {sample.id: abs(with_points[sample.id].iou - box_alone[sample.id].iou) for sample in samples}
    decided = [
        sample
        for sample in samples
        if differences[sample.id] > 0 and any(item.id in sharing for item in sample.objects)
    ]
    by_image: dict[Path, Sample] = {}
    for sample in sorted(decided, key=lambda sample: -differences[sample.id]):
        by_image.setdefault(sample.image, sample)
    return list(by_image.values())[:count]


def draw_comparison(
    sample: Sample, answers: Mapping[str, tuple[PredictionLine, SentenceScore]], caption: str = ""
) -> Image.Image:
    """Draw the annotated objects of a sample and each answer with its prompts, side by side, above a caption.

    The title of an answer is its name in `answers` with the IoU of the sentence, or with the status without objects.

    Raises:
        DataError: The image cannot be read.
    """
    image = load_image(sample.image)
    parts = [(overlay(image, [item.mask() for item in sample.objects]), "truth")]
    for name, (line, score) in answers.items():
        masks = [decode(item.segmentation) for item in line.objects]
        prompts = [item.prompt for item in line.objects if item.prompt is not None]
        result = f"IoU {score.iou:.2f}" if line.objects else line.status.replace("_", " ")
        parts.append((overlay(image, masks, prompts), f"{name}: {result}"))
    return panels(parts, caption)
