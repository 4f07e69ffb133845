"""Score predictions that any program has made.

    python examples/evaluate_predictions.py                                       # generated data, a simple baseline
    python examples/evaluate_predictions.py --predictions mine.jsonl --dataset refcoco --root data --split val

A file of predictions has one JSON line per query, in any order:
    {"id": "refcoco/val/1/1", "status": "ok", "objects": [{"segmentation": {"size": [H, W], "counts": "..."}}]}
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam4mllm import Sample, read_dataset, score, write_dataset
from sam4mllm.data.masks import encode


def predict(sample: Sample) -> np.ndarray:
    """Return the mask (H, W), bool, of the phrase. Put your model here; this baseline takes the center of the image."""
    width, height = sample.size_wh
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    return mask


def write_predictions(samples: Sequence[Sample], file: Path) -> None:
    """Write one line per sample. "no_object" is the status of a phrase that refers to nothing in the image."""
    with file.open("w", encoding="utf-8") as out:
        for sample in samples:
            mask = predict(sample)
            # COCO's compressed RLE at the size of the original image; several objects are allowed.
            objects = [{"segmentation": encode(mask)}] if mask.any() else []
            line = {"id": sample.id, "status": "ok" if objects else "no_object", "objects": objects}
            out.write(json.dumps(line) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score predictions that any program has made.")
    parser.add_argument("--predictions", type=Path, help="predictions.jsonl; default: a baseline's, written here")
    parser.add_argument("--dataset", default="refcoco", help="refcoco, refcoco+, refcocog, grefcoco or reasonseg")
    parser.add_argument("--root", type=Path, help="folder of the data sets (default: generated data)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--work", type=Path, default=Path("runs/examples"), help="folder of the generated data")
    options = parser.parse_args(arguments)

    # 1. The data set. Without --root, colored shapes are generated in the same formats.
    root = options.root
    if root is None:
        root = options.work / "shapes"
        if not root.exists():
            write_dataset(root, scenes=4, held_out=2)

    # 2. The predictions.
    file = options.predictions
    if file is None:
        file = options.work / "predictions.jsonl"
        write_predictions(read_dataset(options.dataset, root, options.split), file)

    # 3. The scores, under the data set's own protocol; a query without a line counts as an empty mask.
    scores = score(file, dataset=options.dataset, root=root, split=options.split)
    print(f"{scores.n} queries, {scores.missing} without a prediction, protocol {scores.protocol}")
    for name in ("ciou", "giou", "n_acc", "pr_70", "acc_50"):
        value = getattr(scores, name)
        print(f"{name:7}{'-' if value is None else f'{100 * value:.1f} %'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
