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
CAPTION = "[/EN#1/people A man] by [/EN#2/scene a wall] ."


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


def write_flickr30k(root: Path, by_split: dict[str, dict[int, tuple[list[str], list[str]]]]) -> Path:
    """Flickr30k Entities: for each split and image its captions, and its objects as XML; images of 20 x 10."""
    folder = root / "flickr30k_entities"
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, images in by_split.items():
        (folder / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
        for image, (captions, objects) in images.items():
            (folder / f"Sentences/{image}.txt").write_text("\n".join(captions) + "\n")
            size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{image}.jpg</filename>{size}{''.join(objects)}</annotation>"
            (folder / f"Annotations/{image}.xml").write_text(xml)
            write_image(folder / f"flickr30k-images/{image}.jpg")
    return folder


def flickr30k_object(*chains: object, box: tuple[object, ...] | None = None) -> str:
    """An object of these chains: with a box (xmin, ymin, xmax, ymax) from 1, the last pixel included, or with none."""
    names = "".join(f"<name>{chain}</name>" for chain in chains)
    if box is None:
        return f"<object>{names}<scene>0</scene><nobndbox>1</nobndbox></object>"
    keys = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return f"<object>{names}<bndbox>{''.join(f'<{key}>{value}</{key}>' for key, value in keys)}</bndbox></object>"


def region(number: object, phrase: object, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    """A region of Visual Genome, x 2, y 1, 6 x 4 pixels."""
    box = {"x": 2, "y": 1, "width": 6, "height": 4}
    return {"region_id": number, "image_id": image_id, **box, "phrase": phrase, "synsets": [{"a": 1}]} | changes


def write_visual_genome(folder: Path, by_image: dict[int, list[Any]], **coco_ids: int) -> Path:
    """Visual Genome: the regions of images of 20 x 10 pixels; odd images are in VG_100K, even ones in VG_100K_2."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [
        {
            "image_id": image,
            "width": 20,
            "height": 10,
            "url": f"https://example.org/rak248/VG_100K{'' if image % 2 else '_2'}/{image}.jpg",
            "coco_id": coco_ids.get(f"of_{image}"),
        }
        for image in by_image
    ]
    (folder / "image_data.json").write_text(json.dumps(images))
    regions = [{"id": image, "regions": found} for image, found in by_image.items()]
    (folder / "region_descriptions.json").write_text(json.dumps(regions))
    for image in images:
        write_image(folder / Path(image["url"]).parent.name / f"{image['image_id']}.jpg")
    return folder / "region_descriptions.json"


def write_tasks(root: Path) -> None:
    """RefCOCOg by google, Flickr30k Entities and Visual Genome, of a few images each, whose bytes differ.

    Image 2 of Visual Genome is the COCO image 2, which RefCOCOg's val split has.
    """
    write_instances(root / "refcocog", [image_record(n) for n in (1, 2)], [annotation(10 * n, n) for n in (1, 2)])
    refs = [ref(1, 10, 1, "train", "the left cup", "a cup"), ref(2, 20, 2, "val", "a held-out cup")]
    write_refs(root / "refcocog", refs, split_by="google")
    for n in (1, 2):
        write_image(root / IMAGES / image_record(n)["file_name"])
    box = flickr30k_object(1, box=(2, 2, 6, 8))
    images = {1: ([CAPTION, "Nothing ."], [box]), 2: ([CAPTION], [box])}
    write_flickr30k(root, {"train": images, "val": {3: ([CAPTION], [box])}})
    regions = {1: [region(n, f"thing {n}") for n in range(10)], 2: [region(1, "it", 2)]}
    write_visual_genome(root / "vg", regions, of_2=2)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        Image.new("RGB", (20, 10), (9 * number, 0, 0)).save(path)
