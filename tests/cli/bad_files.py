"""A folder with one good file of each kind, and the bad ones that test_bad_input.py passes to the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sam4mllm.testing import save_tiny_sam, save_tiny_segmenter
from tests.data.tiny_datasets import IMAGES, annotation, image_record, ref, write_image, write_instances, write_refs

RECIPE = """
output: {home}/made
model: {{base: some/model}}
segmenter: {{checkpoint: {home}/sam.pth}}
data: {{train: [{{dataset: refcoco, root: {home}/data, split: val}}]}}
targets: {{groups: 2, store: {home}/targets}}
"""
QUERY = "refcoco/val/1/10"
MASK = {"size": [10, 20], "counts": [200]}


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def write_files(folder: Path) -> Path:
    """Write all files of the table into `folder`."""
    (folder / "recipe.yaml").write_text(RECIPE.format(home=folder))
    (folder / "typo.yaml").write_text(RECIPE.format(home=folder).replace("groups", "grups"))
    make_images(folder)
    make_checkpoints(folder)
    for name in ("data", "bomb", "cut", "resized", "other_mask"):
        make_root(folder / name)
    (folder / "bomb/refcoco/refs(unc).p").write_bytes(pickle.dumps([Harmful(folder / "harm")]))
    refs = folder / "cut/refcoco/refs(unc).p"
    refs.write_bytes(refs.read_bytes()[:40])
    write_instances(folder / "resized/refcoco", [image_record(5, width=21)], [annotation(50, 5)])
    mask = {"segmentation": {"size": [20, 10], "counts": [200]}}
    write_instances(folder / "other_mask/refcoco", [image_record(5)], [annotation(50, 5) | mask])
    make_root(folder / "long")
    write_refs(folder / "long/refcoco", [ref(1, 50, 5, "val", "x" * 10_000)])
    for name in ("empty", "unfinished"):
        (folder / name).mkdir()
    (folder / "unfinished/recipe.yaml").write_text(RECIPE.format(home=folder))
    lines = {
        "none": [],
        "blank": ["", " "],
        "no_json": ["{"],
        "doubled_queries": [{"id": "1", "image": "a.png", "phrase": "x"}] * 2,
        "long": [{"id": "q7", "image": "a.png", "phrase": "x" * 10_000}],
        "half_a_character": [{"id": "1", "image": "a.png", "phrase": "\ud800"}],
        "good": [prediction()],
        "unknown": [prediction(), prediction(id="refcoco/val/9/9")],
        "doubled": [prediction(), prediction()],
        "no_status": [{"id": QUERY}],
        "other_size": [prediction(objects=[{"segmentation": {"size": [20, 10], "counts": [200]}}])],
        "cut_mask": [prediction(objects=[{"segmentation": {"size": [10, 20], "counts": [7]}}])],
        "huge_box": [prediction(objects=[{"segmentation": MASK, "box_xyxy": [0, 0, 10**400, 1]}])],
        "huge_mask": [prediction(objects=[{"segmentation": {"size": [2**20, 2**20], "counts": [2**40]}}])],
    }
    square = [2, 1, 8, 1, 8, 5]
    lines |= {
        "own": [{"image": "a.png", "phrase": "it", "masks": [square]}],
        "own_typo": [{"image": "a.png", "phrase": "it", "mask": [square]}],
        "own_missing": [{"image": "b.png", "phrase": "it"}],
        "own_boxes": [{"image": "a.png", "phrase": "it", "boxes": [[2, 1, 8, 5]]}],
        "phrases": [{"phrase": "it", "annotation_id": 9}],
        "chat": [{"image": "a.png", "question": "Red?"}],
    }
    for name, content in lines.items():
        texts = [line if isinstance(line, str) else json.dumps(line) for line in content]
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


def make_root(folder: Path) -> None:
    write_instances(folder / "refcoco", [image_record(5)], [annotation(50, 5)])
    write_refs(folder / "refcoco", [ref(1, 50, 5, "val", "the thing")])
    write_image(folder / IMAGES / image_record(5)["file_name"])


def make_images(folder: Path) -> None:
    write_image(folder / "a.png")
    (folder / "text.jpg").write_text("no image\n")
    (folder / "empty.jpg").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])


def make_checkpoints(folder: Path) -> None:
    content = torch.load(save_tiny_sam(folder / "sam.pth"), weights_only=True)
    flat = {"image_encoder.patch_embed.proj.weight": torch.zeros(3)}
    (folder / "text.pth").write_text("no weights\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "cut.pth").write_bytes((folder / "sam.pth").read_bytes()[:5000])
    (folder / "bomb.pth").write_bytes(pickle.dumps(Harmful(folder / "harm")))
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    torch.save(content["model"] | flat, folder / "flat.pth")
    torch.save(content | {"architecture": 3}, folder / "number.pth")
    torch.save(content | {"architecture": {"num_heads": 0}}, folder / "headless.pth")
    (folder / "vit").mkdir()
    (folder / "vit/config.json").write_text('{"model_type": "vit"}')
    weights = load_file(save_tiny_segmenter("sam2", folder / "sam2") / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "sam2/model.safetensors", metadata={"format": "pt"})


def prediction(**changes: Any) -> dict[str, Any]:
    return {"id": QUERY, "status": "ok", "objects": [{"segmentation": MASK}]} | changes
