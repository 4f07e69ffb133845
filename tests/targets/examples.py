"""Settings, samples and a segmenter for the tests of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import Box, box_of_mask
from sam4mllm.segmenters.base import DecodedMasks
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import TargetStore

SETTINGS = TargetSettings(
    positives=2,
    negatives=1,
    groups=8,
    keep=1,
    judge="exact",
    choose="top",
    jitter=0.1,
    jitter_boxes=3,
    widen=0.1,
    min_iou=0.0,
    seed=0,
    batch_size=16,
)


def disc(center_xy: tuple[float, float], radius: float, size_wh: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: size_wh[1], : size_wh[0]] + 0.5
    return np.hypot(columns - center_xy[0], rows - center_xy[1]) < radius


def mask_object(object_id: str, mask: np.ndarray) -> MaskObject:
    return MaskObject(object_id, encode(mask), box_of_mask(mask) or Box(0, 0, 1, 1))


def make_samples(folder: Path, images: int = 4) -> list[Sample]:
    """Write images with two discs each and return four samples per image: each disc, both, and no object."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(images):
        size_wh = (60 + number, 40)
        rng = np.random.default_rng(number)
        image = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)).save(image)
        discs = [disc((15, 15), 9.5, size_wh), disc((40, 22 + number), 11, size_wh)]
        objects = tuple(mask_object(f"ann/{number}/{index}", mask) for index, mask in enumerate(discs))
        for name, targets in (("left", objects[:1]), ("right", objects[1:]), ("both", objects), ("none", ())):
            samples.append(Sample(f"{number}/{name}", image, size_wh, name, targets))
    return samples


def under_other_ids(samples: Sequence[Sample], name: str) -> list[Sample]:
    """The samples of a data set `name` that has the same objects under ids of its own."""
    return [
        replace(
            sample,
            id=f"{name}/{sample.id}",
            objects=tuple(replace(item, id=f"{name}/{item.id}") for item in sample.objects),
        )
        for sample in samples
    ]


class Counting(BoxSegmenter):
    """A BoxSegmenter that counts embedded images and decoded prompts, and is interrupted after `stop_after` images."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(points_cut=True)
        self.images = 0
        self.prompts = 0
        self.stop_after = stop_after

    def embed(self, images: Any) -> Any:
        if self.images == self.stop_after:
            raise KeyboardInterrupt
        self.images += len(images)
        return super().embed(images)

    def decode_points(self, embeddings: Any, index: Any, boxes_xyxy: Any, points_xy: Any, labels: Any) -> DecodedMasks:
        self.prompts += len(index)
        return super().decode_points(embeddings, index, boxes_xyxy, points_xy, labels)


def content(store: TargetStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.path.iterdir()}
