"""Measure what points add to a box for a segmenter: IoU of the box alone, of a random group and of the best group.

    python toy_models/measure_segmenter.py

Prints, for each checkpoint, kind of scenes and seed, the mean over all shapes and over those that share their box with
another. 64 groups of 2 positive and 1 negative points are scored with the true box, as training targets are.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from segmenter_prompts import shares_box

from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.scenes import make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES
from sam4mllm.targets.sampling import draw_groups, seeded_rng
from sam4mllm.targets.scoring import Candidate, score_groups

SEEDS = (771, 772, 773)


def measure(segmenter: Segmenter, seed: int, scenes: int, shared_boxes: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoUs (n, 3) of box, random group and best group of each shape, and whether it shares its box (n,)."""
    ious, shared = [], []
    for index in range(scenes):
        scene = make_scene(seed, index, shared_boxes=shared_boxes)
        candidates = []
        for number, shape in enumerate(scene.shapes):
            rng = seeded_rng(0, "points", f"{index}/{number}")
            groups = draw_groups(shape.mask, shape.box, rng, groups=64, positives=2, negatives=1, margin=0.1)
            box = np.array([shape.box], dtype=np.float32)
            candidates.append(Candidate(shape.mask, groups, box, box))
        for scores in score_groups(segmenter, segmenter.embed([scene.image]), candidates, batch_size=256):
            ious.append((scores.box_iou, scores.ious.mean(), scores.ious.max()))
        shared += shares_box(scene).tolist()
    return np.array(ious), np.array(shared)


def main() -> None:
    """Parse the options, and print a line per checkpoint, kind of scenes and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", nargs="*", default=["shapes"], help="a .pth; default: `shapes`, the embedded SAM"
    )
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each seed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("IoU of box alone, random group, best group")
    for checkpoint in options.checkpoints:
        segmenter = load_segmenter(checkpoint, "cpu", "float32")
        for shared_boxes in (0.0, SHARED_BOXES):
            for seed in SEEDS:
                ious, shared = measure(segmenter, seed, options.scenes, shared_boxes)
                line = f"{checkpoint}, shared_boxes={shared_boxes}, seed {seed}: "
                line += f"{len(ious)} shapes {ious.mean(0).round(3)}"
                if shared.any():
                    line += f", {shared.sum()} of them sharing a box {ious[shared].mean(0).round(3)}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
