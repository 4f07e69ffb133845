"""Time the scoring of predictions: ours and, as baseline, a loop over decoded masks in NumPy.

    python benchmarks/bench_score.py --json runs/bench/score.json

Predictions of one object with a box and three points each, for sentences of a data set of RefCOCO's proportions, are
scored from their file. The baseline is the loop of LAVT and LISA: it parses a line, decodes the predicted and the
annotated mask, and counts intersection and union; it checks nothing, and computes cIoU, gIoU and Pr@ alone. Ours also
checks each line, and computes Acc@0.5, the matches of objects, and the figures of the points. The annotations have
been read before. "same" is 1 if cIoU, gIoU and Pr@ are the baseline's up to the rounding of its mean.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as coco
from refcoco_size import SENTENCES_A_REF, SPLITS, write_refcoco
from script import Figures, add_size, parser_of, report
from timing import compare

from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.score import score_predictions
from sam4mllm.geometry import Box, Point, SamPrompt

SPLIT = "train"
FIGURES = ("ciou", "giou", "pr_70", "pr_80", "pr_90")
_MOST_MOVED = 15


def write_predictions(samples: Sequence[Sample], path: Path, seed: int) -> None:
    """Write a prediction for each sample: its mask moved by up to 15 pixels, the box of it, and points in the box."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            (item,) = sample.objects
            right, down = (int(each) for each in rng.integers(-_MOST_MOVED, _MOST_MOVED + 1, 2))
            mask = np.roll(item.mask(), (down, right), axis=(0, 1))
            box = Box(item.box.x1 + right, item.box.y1 + down, item.box.x2 + right, item.box.y2 + down)
            points = tuple(
                Point(float(rng.uniform(box.x1, box.x2)), float(rng.uniform(box.y1, box.y2)), label)
                for label in (1, 1, 0)
            )
            predicted = PredictedObject(encode(mask), SamPrompt(box, points), score=0.9)
            line = PredictionLine(sample.id, "ok", (predicted,), sample.image, sample.phrase, "<box>", score=0.9)
            file.write(dump_line(line))


def plain(path: Path, samples: Mapping[str, Sample]) -> dict[str, float]:
    """Return cIoU, gIoU and Pr@ of the predictions, with all masks decoded."""
    intersections, unions = [], []
    with path.open(encoding="utf-8") as file:
        for line in file:
            prediction = json.loads(line)
            predicted = coco.decode(prediction["objects"][0]["segmentation"])
            truth = coco.decode(samples[prediction["id"]].objects[0].rle)
            intersections.append(np.logical_and(predicted, truth).sum())
            unions.append(np.logical_or(predicted, truth).sum())
    ious = np.array(intersections) / np.array(unions)
    precisions = {f"pr_{percent}": float((ious >= percent / 100).mean()) for percent in (70, 80, 90)}
    return {"ciou": float(np.sum(intersections) / np.sum(unions)), "giou": float(ious.mean()), **precisions}


def ours(path: Path, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the same figures by `score`, whose annotations have been read."""
    scores = score_predictions(read_predictions(path), samples, dataset="refcoco", split=SPLIT).to_json()
    return {name: scores[name] for name in FIGURES}


def same(theirs: Mapping[str, float], figures: Mapping[str, float]) -> float:
    """Return 1 if all figures are equal up to rounding, else 0."""
    return float(all(math.isclose(theirs[name], figures[name], rel_tol=1e-12) for name in FIGURES))


def run(options: argparse.Namespace) -> Figures:
    """Return the settings and the rows of both variants."""
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        root, path = Path(folder, "data"), Path(folder, "predictions.jsonl")
        # With some more sentences than needed, because the last refs are those of other splits.
        write_refcoco(root, math.ceil(options.predictions / SENTENCES_A_REF / SPLITS[0][1]) + 1, options.seed)
        samples = read_dataset("refcoco", root, SPLIT, limit=options.predictions)
        write_predictions(samples, path, options.seed)
        rows = compare(
            "score",
            {
                "NumPy, decoded masks": partial(plain, path, {sample.id: sample for sample in samples}),
                "sam4mllm": partial(ours, path, samples),
            },
            items=len(samples),
            item="prediction",
            repeats=options.repeats,
            device=options.device,
            same=same,
        )
    return {"predictions": len(samples)}, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the figures."""
    parser = parser_of(__doc__)
    add_size(parser, "--predictions", "predictions that are scored", default=10_000, small=1000)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
