"""A file of predictions about two images: parts, holes, shared pixels, several phrases, and answers without masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from tests.data.tiny_datasets import write_image

WIDTH, HEIGHT = 40, 24
RING, PARTS, DOT = 'the red "ring", <left>', "two parts: é", "the dot"


def masks() -> dict[str, npt.NDArray[np.bool_]]:
    """A ring with a hole, a mask of two parts, and a single pixel in the last corner, (H, W) each."""
    ring = np.zeros((HEIGHT, WIDTH), dtype=bool)
    ring[2:14, 3:17] = True
    ring[5:9, 6:12] = False
    parts = np.zeros_like(ring)
    parts[0:6, 20:30] = True
    parts[12:20, 31:36] = True
    dot = np.zeros_like(ring)
    dot[-1, -1] = True
    return {RING: ring, PARTS: parts, DOT: dot}


def write_predictions(folder: Path) -> Path:
    """Write the images photos/a.png and photos/b/c.png, and predictions.jsonl; return the file."""
    drawn = {phrase: encode(mask) for phrase, mask in masks().items()}
    first, second = folder / "photos/a.png", folder / "photos/b/c.png"
    write_image(first, WIDTH, HEIGHT)
    write_image(second, WIDTH, HEIGHT)

    def line(name: str, image: Path, phrase: str, *objects: PredictedObject) -> PredictionLine:
        return PredictionLine(name, "ok" if objects else "no_object", objects, image, phrase)

    lines = [
        line("1", first, RING, PredictedObject(drawn[RING], score=0.75)),
        line("2", second, "the dragon"),
        line("3", first, PARTS, PredictedObject(drawn[PARTS], score=0.5), PredictedObject(drawn[DOT], score=0.25)),
        line("4", second, RING, PredictedObject(drawn[DOT], score=1.0)),
        PredictionLine("5", "malformed", image=first, phrase="x", error="no bracket"),
        PredictionLine("6", "error", image=folder / "missing.png", phrase="x", error="no such file"),
    ]
    file = folder / "predictions.jsonl"
    file.write_text("".join(map(dump_line, lines)), encoding="utf-8")
    return file
