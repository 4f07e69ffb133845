"""A folder for training with YOLO's segmentation format: `labels/*.txt`, `images/`, `data.yaml` and `instances.jsonl`.

A line of a label file is `class x1 y1 x2 y2 ...`: the outline in shares of the image's width and height. `images/`
holds symbolic links to the images, since programs find a label file by its image's path. The format has neither scores
nor masks of several parts or with holes: `instances.jsonl` has the phrase and the score of each line, and an outline
joins all parts and holes of its mask by lines of no width, as converters from COCO do. Points are centers of pixels, so
`cv2.fillPoly` draws a mask of one part without holes exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sam4mllm.data.json_lines import dump_object
from sam4mllm.data.masks import Rle, decode
from sam4mllm.export.formats import OBJECT_LABEL, ExportOptions
from sam4mllm.export.instances import ImageInstances, phrases_of, unique_names

# Outlines of more pairs of points are joined at their first points instead of at the nearest ones.
_MOST_PAIRS = 10**6

_Ring = npt.NDArray[np.int32]


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the files to the folder."""
    names = [OBJECT_LABEL] if options.as_attribute else phrases_of(images)
    class_of = {name: number for number, name in enumerate(names)}
    index: list[dict[str, Any]] = []
    for image, name in zip(images, unique_names(images), strict=True):
        link, labels = output / "images" / name, output / "labels" / name.with_suffix(".txt")
        link.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image.path.absolute())
        lines: list[str] = []
        for phrase in image.phrases:
            number = 0 if options.as_attribute else class_of.get(phrase.phrase, 0)
            for instance in phrase.instances:
                lines.append(" ".join([str(number), *map(_number, _outline_shares(instance.rle))]))
                index.append(
                    {
                        "labels": labels.relative_to(output).as_posix(),
                        "line": len(lines),
                        "id": phrase.id,
                        "phrase": phrase.phrase,
                        "score": instance.score,
                    }
                )
        labels.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with (output / "instances.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(map(dump_object, index))
    # JSON is YAML, so quotes and colons in phrases need no rules of their own.
    classes = "".join(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for name, number in class_of.items())
    (output / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{classes}", encoding="utf-8")


def outline(rle: Rle) -> _Ring:
    """Return one closed outline (N, 2), N >= 3, of a mask: x and y of pixels; all parts and holes are joined."""
    found, _ = cv2.findContours(decode(rle).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = sorted((np.asarray(ring, dtype=np.int32).reshape(-1, 2) for ring in found), key=len, reverse=True)
    joined = rings[0]
    for ring in rings[1:]:
        joined = _join(joined, ring)
    return np.concatenate([joined, np.repeat(joined[-1:], max(0, 3 - len(joined)), axis=0)])


def _join(ring: _Ring, other: _Ring) -> _Ring:
    """Insert a ring into another, from the nearest point of one to that of the other and back."""
    at = to = 0
    if len(ring) * len(other) <= _MOST_PAIRS:
        distances = ((ring[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
        at, to = (int(index) for index in np.unravel_index(distances.argmin(), distances.shape))
    return np.concatenate([ring[: at + 1], other[to:], other[: to + 1], ring[at:]])


def _outline_shares(rle: Rle) -> list[float]:
    """Return x1, y1, x2, y2, ... of a mask's outline in shares of the image's width and height."""
    height, width = rle["size"]
    return ((outline(rle) + 0.5) / (width, height)).reshape(-1).tolist()


def _number(value: float) -> str:
    return f"{value:.6f}"
