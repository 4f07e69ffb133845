"""Write files in the form and with the proportions of RefCOCO's: refs(unc).p, instances.json and images.

RefCOCO has 50,000 refs with 142,210 sentences about 19,994 images with 196,771 annotated objects. Of an image's file
only the header is read, so that all images of a size are one gray file under many names.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.data.readers.refs import COCO_IMAGES

REFS = 50_000
SENTENCES_A_REF = 2.84
REFS_AN_IMAGE = 2.5
ANNOTATIONS_AN_IMAGE = 9.85
SIZES_WH = ((640, 480), (640, 427), (480, 640), (500, 375), (612, 612))
# The share of the refs up to the end of each split.
SPLITS = (("train", 0.848), ("val", 0.924), ("testA", 0.964), ("testB", 1.0))
_WORDS = (
    "left right man woman girl boy red blue green shirt the in on of with front back standing sitting guy person lady "
    "middle far closest bottom top corner white black hat holding dog horse chair umbrella bus"
)
_FIRST_ANNOTATION = 1000
# Texts as pickle writes them in protocol 0, of which the words above need no escape.
_TEXT = re.compile(rb"V([^\n]*)\n")


def write_refcoco(root: Path, refs: int, seed: int = 0) -> None:
    """Write a data set of `refs` refs under `root`, which read_dataset("refcoco", root, "train") reads.

    refs(unc).p is a pickle of protocol 0 with byte strings, as Python 2 wrote it. Polygons have 25 corners in the
    middle, and two decimals.
    """
    rng = np.random.default_rng(seed)
    folder, images = root / "refcoco", root / COCO_IMAGES
    folder.mkdir(parents=True)
    images.mkdir(parents=True)
    count = max(1, round(refs / REFS_AN_IMAGE))
    for width, height in SIZES_WH:
        Image.new("RGB", (width, height), "gray").save(root / f"{width}x{height}.jpg")
    records = [_image(number, root, images) for number in range(count)]
    annotations = [_annotation(number, records[number % count], rng) for number in range(_annotations(count))]
    content = {"info": {}, "images": records, "licenses": [], "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    ref_records = [_ref(number, refs, annotations, rng) for number in range(refs)]
    pickled = pickle.dumps(ref_records, protocol=0)
    (folder / "refs(unc).p").write_bytes(_TEXT.sub(rb"S'\1'\n", pickled))


def _annotations(images: int) -> int:
    return round(images * ANNOTATIONS_AN_IMAGE)


def _image(number: int, root: Path, images: Path) -> dict[str, Any]:
    width, height = SIZES_WH[number % len(SIZES_WH)]
    name = f"COCO_train2014_{number + 1:012}.jpg"
    (images / name).hardlink_to(root / f"{width}x{height}.jpg")
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://mscoco.org/images/{number + 1}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
        "id": number + 1,
    }


def _annotation(number: int, image: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    size_wh = np.array([image["width"], image["height"]])
    center = rng.uniform(0.2, 0.8, 2) * size_wh
    radius = np.minimum(center, size_wh - center) * rng.uniform(0.2, 0.95, 2)
    polygons = []
    for part in range(1 if rng.random() < 0.9 else 2):
        corners = int(np.clip(rng.lognormal(3.2, 0.6), 4, 150))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = rng.uniform(0.7, 1, corners) / (2 * part + 1)
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
        polygons.append((center + radius * around).round(2))
    low, high = np.concatenate(polygons).min(axis=0), np.concatenate(polygons).max(axis=0)
    return {
        "segmentation": [polygon.ravel().tolist() for polygon in polygons],
        "area": float(rng.uniform(100, 90_000)),
        "iscrowd": 0,
        "image_id": image["id"],
        "bbox": [round(value, 2) for value in [*low.tolist(), *(high - low).tolist()]],
        "category_id": int(rng.integers(1, 91)),
        "id": _FIRST_ANNOTATION + number,
    }


def _ref(number: int, refs: int, annotations: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    annotation = annotations[number * len(annotations) // refs]
    first, last = (int(SENTENCES_A_REF * each) for each in (number, number + 1))
    sentences = []
    for sent_id in range(first, last):
        tokens = rng.choice(_WORDS.split(), int(rng.integers(1, 7))).tolist()
        sent = " ".join(tokens)
        sentences.append({"tokens": tokens, "raw": sent, "sent_id": sent_id, "sent": sent})
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{annotation['image_id']:012}_{number}.jpg",
        "ann_id": annotation["id"],
        "ref_id": number,
        "image_id": annotation["image_id"],
        "split": next(split for split, end in SPLITS if number < end * refs),
        "sentences": sentences,
        "category_id": annotation["category_id"],
    }
