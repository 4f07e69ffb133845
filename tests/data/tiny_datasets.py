"""Small data sets in the real formats, written by hand: readers are tested against the formats, not our own writer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = "images/mscoco/images/train2014"


def image_record(identity: int, width: int = 20, height: int = 10) -> dict[str, Any]:
    name = f"COCO_train2014_{identity:012d}.jpg"
    return {"id": identity, "width": width, "height": height, "file_name": name}


def annotation(identity: int, image_id: int, x: int = 2, y: int = 1, width: int = 6, height: int = 4) -> dict[str, Any]:
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, y, width, height],
        "segmentation": [polygon],
    }


def write_noise(root: Path, numbers: Iterable[int]) -> None:
    """The images of these numbers, 60 x 40, of random pixels."""
    (root / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in numbers:
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / IMAGES / image_record(number)["file_name"])


def ref(ref_id: int, ann_id: object, image_id: int, split: str, *phrases: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * ref_id + index, "raw": phrase.upper(), "sent": phrase, "tokens": phrase.split()}
        for index, phrase in enumerate(phrases)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def write_instances(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def write_refs(folder: Path, refs: object, *, split_by: str = "unc", protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"refs({split_by}).p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    return path


def write_image(path: Path, width: int = 20, height: int = 10, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path, **options)
    return path


def write_broken_avif(path: Path) -> Path:
    """An image whose decoder ends with RuntimeError, which most of Pillow's do not."""
    write_image(path)
    path.write_bytes(path.read_bytes().replace(b"av1C", b"gone"))
    return path


def write_reasonseg(root: Path, split: str, stem: str, texts: list[str], shapes: list[dict[str, Any]]) -> Path:
    folder = root / "ReasonSeg" / split
    write_image(folder / f"{stem}.jpg")
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({"text": texts, "is_sentence": True, "shapes": shapes}))
    return path


def rectangle(label: str, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    return {"label": label, "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
