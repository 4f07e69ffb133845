"""Measure the embedded MLLM's location tokens on held-out scenes of three seeds with and without shared boxes.

    python toy_models/measure_locations.py shapes-locations
    python toy_models/measure_locations.py RUN

The model, a base or a run of the method pix2emb, marks each phrase about one object; the table has the share of right
boxes (IoU above 0.5), their mean IoU, and the cIoU of the masks that SAM decodes from box and embedding. Then it is
asked what is at the box of each shape: the share of answers with the shape's color and silhouette, of shapes that share
their box (IoU above 0.5) with no other one, and of all.
"""

from __future__ import annotations

import argparse

import numpy as np
from mllm_held_out import HELD_OUT_SEED
from segmenter_prompts import shares_box

from sam4mllm.mllm.loading import EMBEDDED, EMBEDDED_LOCATIONS
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.questions import ask_region_caption
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES

_KINDS = ("attribute", "position", "relation", "superlative")


def load(model: str) -> Pipeline:
    """Load a run, or the embedded base with the settings of pix2emb."""
    if model != EMBEDDED_LOCATIONS:
        return Pipeline.from_pretrained(model, device="cpu")
    method = {"name": "pix2emb", "prompt": "both", "sam_tokens": 1, "phrases": 1}
    segmenter = load_segmenter(EMBEDDED, "cpu", "float32")
    return Pipeline.from_pretrained(model, device="cpu", segmenter=segmenter, method=method)


def measure(pipeline: Pipeline, seed: int, scenes: int, shared_boxes: float) -> dict[str, float]:
    """Return the figures on the scenes of one seed."""
    # 1. Phrases about one object.
    asked: list[tuple[Scene, int, str]] = []
    every = [make_scene(seed, index, shared_boxes=shared_boxes) for index in range(scenes)]
    for index, scene in enumerate(every):
        rng = np.random.default_rng([seed, 1, index])
        found = [phrase for kind in _KINDS if (phrase := phrases_of(scene, rng, kind)) is not None]
        asked += [(scene, phrase.shapes[0], phrase.text) for phrase in found]
    results = pipeline([(scene.image, text) for scene, _, text in asked])
    ious, intersection, union = [], 0, 0
    for (scene, which, _), result in zip(asked, results, strict=True):
        boxes = [prompt.box for prompt in result.prompts if prompt.box is not None]
        ious.append(scene.shapes[which].box.iou(boxes[0]) if boxes else 0.0)
        mask, truth = result.mask.cpu().numpy(), scene.shapes[which].mask
        intersection, union = intersection + int((mask & truth).sum()), union + int((mask | truth).sum())

    # 2. Region captions.
    named, alone = [], []
    for scene in every:
        for shape, shares in zip(scene.shapes, shares_box(scene), strict=True):
            text = pipeline.ask(scene.image, ask_region_caption(), [shape.box]).answer
            named.append(text.split()[-2:] == [shape.colour, shape.name])
            alone.append(not shares)
    return {
        "phrases": len(asked),
        "box is right": float((np.array(ious) > 0.5).mean()),
        "mean IoU of boxes": float(np.mean(ious)),
        "cIoU of masks": intersection / union,
        "regions": len(named),
        "color and silhouette, no shared box": float(np.array(named)[np.array(alone)].mean()),
        "color and silhouette, all": float(np.mean(named)),
    }


def main() -> None:
    """Parse the options and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='a run folder, or "shapes-locations"')
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[HELD_OUT_SEED + k for k in (10, 11, 12)])
    options = parser.parse_args()
    pipeline = load(options.model)
    for shared_boxes in (0.0, SHARED_BOXES):
        rows = [measure(pipeline, seed, options.scenes, shared_boxes) for seed in options.seeds]
        print(f"scenes with {shared_boxes:.0%} shared boxes")
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"  {name:36} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
