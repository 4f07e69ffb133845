"""Measure how well an MLLM points in plain words, on held-out scenes of three seeds with and without shared boxes.

    python toy_models/measure_mllm.py sam4mllm/models/mllm

For phrases about one object, the model is asked "Point to ..." and, separately, for the box. The table has, over the
phrases whose box is right (IoU above 0.5), the share of points on the visible part of the object, and the same for the
center of the true box and for a random place in it; then the share of right answers about all points of the yes/no
questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from mllm_held_out import HELD_OUT_SEED, generate, score
from mllm_pointing import exchanges, point_to
from mllm_text import Exchange, boxes_answer
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from sam4mllm.prompts.questions import ask_boxes
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES

_KINDS = ("attribute", "position", "relation", "superlative")
_BATCH = 64


def measure(folder: Path, seed: int, scenes: int, shared_boxes: float) -> dict[str, float]:
    """Return the figures on the scenes of one seed."""
    # 1. Two questions about each phrase, and the yes/no questions of the pre-training.
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    boxes: list[tuple[Scene, Exchange]] = []
    points: list[tuple[Scene, Exchange]] = []
    yes_no: list[tuple[Scene, Exchange]] = []
    for index in range(scenes):
        scene = make_scene(seed, index, shared_boxes=shared_boxes)
        rng = np.random.default_rng([seed, 1, index])
        phrases = [phrase for kind in _KINDS if (phrase := phrases_of(scene, rng, kind)) is not None]
        for phrase in phrases:
            (which,) = phrase.shapes
            boxes.append((scene, Exchange("box", ask_boxes(phrase.text), boxes_answer(scene, (which,)), (which,))))
            points.append((scene, point_to(scene, rng, phrase)))
        yes_no += [(scene, each) for each in exchanges(scene, rng) if each.kind == "on"]

    # 2. The answers and the shares.
    def scores(items: list[tuple[Scene, Exchange]]) -> list[float]:
        found = []
        for start in range(0, len(items), _BATCH):
            chunk = items[start : start + _BATCH]
            answers = generate(model, tokenizer, chunk)
            found += [score(*item, answer) for item, answer in zip(chunk, answers, strict=True)]
        return found

    right = np.array(scores(boxes)) > 0
    shapes = [scene.shapes[each.answer_shapes[0]] for scene, each in points]
    centers = [shape.mask[int(shape.centre_xy[1]), int(shape.centre_xy[0])] for shape in shapes]
    chance = [shape.mask.sum() / shape.box.area for shape in shapes]
    return {
        "phrases": len(points),
        "box is right": float(right.mean()),
        "point on the object": float(np.array(scores(points))[right].mean()),
        "center of the box": float(np.array(centers)[right].mean()),
        "random place in the box": float(np.array(chance)[right].mean()),
        "yes/no": float(np.mean(scores(yes_no))),
    }


def main() -> None:
    """Parse the options and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[HELD_OUT_SEED + k for k in (10, 11, 12)])
    options = parser.parse_args()
    for shared_boxes in (0.0, SHARED_BOXES):
        rows = [measure(options.model, seed, options.scenes, shared_boxes) for seed in options.seeds]
        print(f"scenes with {shared_boxes:.0%} shared boxes")
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"  {name:24} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
