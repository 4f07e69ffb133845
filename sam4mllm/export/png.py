"""A folder of masks as PNG: one image of 0 and 255 for each instance, and `index.jsonl`, one line for each.

Each line has the mask's file, the image, its size, the phrase, the score and the box. A phrase without an object has a
line whose mask is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.data.json_lines import dump_object
from sam4mllm.data.masks import decode
from sam4mllm.export.formats import ExportOptions
from sam4mllm.export.instances import ImageInstances, unique_names


def write(images: Sequence[ImageInstances], output: Path, options: ExportOptions) -> None:
    """Write the files to the folder; masks have no categories, so `options` change nothing."""
    lines: list[dict[str, Any]] = []
    for image, name in zip(images, unique_names(images), strict=True):
        folder = output / name.with_suffix("")
        number = 0
        for phrase in image.phrases:
            common = {
                "image": str(image.path),
                "size_wh": list(image.size_wh),
                "id": phrase.id,
                "phrase": phrase.phrase,
            }
            if phrase.no_object:
                lines.append({"mask": None, **common})
            for instance in phrase.instances:
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{number:04d}.png"
                number += 1
                Image.fromarray(decode(instance.rle).astype(np.uint8) * 255).save(file)
                box = [float(value) for value in instance.box]
                mask = file.relative_to(output).as_posix()
                lines.append({"mask": mask, **common, "score": instance.score, "box_xyxy": box})
    with (output / "index.jsonl").open("w", encoding="utf-8") as index:
        index.writelines(map(dump_object, lines))
