"""Time the scoring of point groups on `shapes` scenes: our decoder and, as baselines, segment_anything's own.

    python benchmarks/bench_targets.py --objects 10 --json runs/bench-targets.json
    python benchmarks/bench_targets.py --checkpoint sam_vit_b_01ec64.pth --device cuda --objects 50

All variants start from the same image embedding and end at the IoU with the true mask, at the image's size, of every
group of points and of the box alone. The two baselines are segment_anything's `SamPredictor.predict_torch`: one group
at a time, and all groups of an object at once. Ours decodes the groups of all objects of an image in batches. "same
IoU" is the share of groups whose IoU differs from the first baseline's by at most 0.001. All compute in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segment_anything import SamPredictor
from timing import machine, take_turns, write_json

from sam4mllm.errors import ModelError, Sam4mllmError
from sam4mllm.evaluation.report import text_table
from sam4mllm.segmenters.base import Embeddings
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.targets.sampling import draw_groups, seeded_rng
from sam4mllm.targets.scoring import Candidate, score_groups
from sam4mllm.utils.device import resolve_device

ONE = "segment_anything, one group at a time"
ALL = "segment_anything, an object's groups at once"
TOLERANCE = 1e-3

Ious = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """An embedded image and its objects with their groups."""

    embedded: Embeddings
    candidates: list[Candidate]


def scenes_of(objects: int, seed: int) -> list[Scene]:
    """Return scenes with `objects` shapes in total; surplus shapes of the last scene are dropped."""
    scenes: list[Scene] = []
    while (held := sum(len(scene.shapes) for scene in scenes)) < objects:
        scene = make_scene(seed, len(scenes))
        scenes.append(Scene(scene.image, scene.shapes[: objects - held]))
    return scenes


def candidates_of(number: int, scene: Scene, groups: int, seed: int) -> list[Candidate]:
    """Return the shapes of a scene with groups of two positive and one negative point, and the true box."""
    candidates = []
    for index, shape in enumerate(scene.shapes):
        rng = seeded_rng(seed, "points", f"{number}/{index}")
        drawn = draw_groups(shape.mask, shape.box, rng, groups=groups, positives=2, negatives=1, margin=0.1)
        box = np.array([shape.box], dtype=np.float32)
        candidates.append(Candidate(shape.mask, drawn, box, box))
    return candidates


def ours(segmenter: SegmentAnything, works: Sequence[Work], batch_size: int) -> Ious:
    """Return the IoU (objects, groups + 1) by our decoder; the last column is the box alone."""
    scores = [each for w in works for each in score_groups(segmenter, w.embedded, w.candidates, batch_size)]
    return np.stack([np.append(each.ious, np.float32(each.box_iou)) for each in scores])


@torch.no_grad()
def theirs(predictor: SamPredictor, works: Sequence[Work], at_once: int) -> Ious:
    """Return the same by segment_anything, with `at_once` groups of an object in a batch."""
    rows = []
    for work in works:
        _set_image(predictor, work.embedded)
        for candidate in work.candidates:
            truth = torch.from_numpy(candidate.truth).to(predictor.device)
            xy, labels = torch.from_numpy(candidate.groups.xy), torch.from_numpy(candidate.groups.labels)
            box = torch.from_numpy(candidate.box_only_xyxy)
            parts = [
                _ious(predictor, part, labels.expand(len(part), -1), box.repeat(len(part), 1), truth)
                for part in xy.split(at_once)
            ]
            parts.append(_ious(predictor, None, None, box, truth))
            rows.append(torch.cat(parts).cpu().numpy())
    return np.stack(rows)


def _set_image(predictor: SamPredictor, embedded: Embeddings) -> None:
    """Set the predictor's state as `SamPredictor.set_image` does, from a computed embedding."""
    width, height = embedded.sizes_wh[0]
    predictor.original_size = (height, width)
    predictor.input_size = predictor.transform.get_preprocess_shape(height, width, predictor.transform.target_length)
    predictor.features = embedded.features[0]
    predictor.is_image_set = True


def _ious(
    predictor: SamPredictor,
    xy: torch.Tensor | None,
    labels: torch.Tensor | None,
    boxes: torch.Tensor,
    truth: torch.Tensor,
) -> torch.Tensor:
    """Return the IoU (N,) with the true mask (H, W) of N prompts, each by its mask with the highest predicted IoU."""
    device, size_hw = predictor.device, predictor.original_size
    # segment_anything adds the half again, because it takes coordinates as pixel indexes.
    points = None if xy is None else predictor.transform.apply_coords_torch(xy.to(device), size_hw) - 0.5
    boxes = predictor.transform.apply_boxes_torch(boxes.to(device), size_hw) - 0.5
    masks, predicted_ious, _ = predictor.predict_torch(points, None if labels is None else labels.to(device), boxes)
    best = masks[torch.arange(len(masks), device=device), predicted_ious.argmax(dim=1)]
    intersection = (best & truth).sum(dim=(1, 2)).float()
    return intersection / (best | truth).sum(dim=(1, 2)).clamp(min=1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures: milliseconds per object of each variant, and of the steps before all of them."""
    device = resolve_device(options.device)
    segmenter = load_segmenter(options.checkpoint, device)
    if not isinstance(segmenter, SegmentAnything):
        raise ModelError(f"{options.checkpoint}: the baselines are segment_anything's; use one of its .pth files")
    predictor = SamPredictor(segmenter.sam)
    scenes = scenes_of(options.objects, options.seed)

    def draw() -> list[list[Candidate]]:
        return [candidates_of(number, scene, options.groups, options.seed) for number, scene in enumerate(scenes)]

    def embed() -> list[Embeddings]:
        return [segmenter.embed([scene.image]) for scene in scenes]

    drawing, drawn = take_turns({"draw": draw}, options.repeats, device)
    embedding, embedded = take_turns({"embed": embed}, options.repeats, device)
    works = [Work(*pair) for pair in zip(embedded["embed"], drawn["draw"], strict=True)]
    variants = {ONE: partial(theirs, predictor, works, 1), ALL: partial(theirs, predictor, works, options.groups)}
    variants |= {
        f"sam4mllm, {size} prompts at once": partial(ours, segmenter, works, size) for size in options.batch_sizes
    }
    seconds, ious = take_turns(variants, options.repeats, device)
    return {
        "machine": machine(device),
        "checkpoint": str(options.checkpoint),
        "objects": options.objects,
        "images": len(scenes),
        "groups": options.groups,
        "ms_to_draw_an_object": 1000 * drawing["draw"] / options.objects,
        "ms_to_embed_an_image": 1000 * embedding["embed"] / len(scenes),
        "ways": {
            name: {
                "ms_an_object": 1000 * seconds[name] / options.objects,
                "times_faster_than_one": seconds[ONE] / seconds[name],
                "times_faster_than_all": seconds[ALL] / seconds[name],
                "same_iou": float((np.abs(ious[name] - ious[ONE]) <= TOLERANCE).mean()),
            }
            for name in variants
        },
    }


def table(record: dict[str, Any]) -> list[str]:
    """Return the figures as text; x 2.0 is twice as fast."""
    about = record["machine"]
    rows = [
        [
            name,
            f"{figures['ms_an_object']:.1f}",
            f"x {figures['times_faster_than_one']:.1f}",
            f"x {figures['times_faster_than_all']:.1f}",
            f"{100 * figures['same_iou']:.1f} %",
            "",
        ]
        for name, figures in record["ways"].items()
    ]
    return [
        f"{record['checkpoint']} on {about['processor']}, {about['threads']} thread(s), torch {about['torch']}",
        f"{record['objects']} objects in {record['images']} images, {record['groups']} groups of 2 + 1 points each",
        f"before all variants: {record['ms_to_embed_an_image']:.1f} ms to embed an image, "
        f"{record['ms_to_draw_an_object']:.1f} ms to draw an object's groups",
        "",
        *text_table(["", "ms per object", "to one at a time", "to an object at once", "same IoU", ""], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="shapes", help="a SAM's .pth (default: shapes, the embedded one)")
    parser.add_argument("--objects", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--groups", type=int, default=64, metavar="K", help="groups of points per object (default: 64)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 256], metavar="N")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs per variant; the shortest time is reported"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and the points (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if min(options.objects, options.groups, options.repeats, *options.batch_sizes) < 1:
        parser.error("objects, groups, batch sizes and repeats are 1 or more")
    try:
        record = run(options)
    except Sam4mllmError as error:
        sys.exit(f"bench_targets: error: {error}")
    print("\n".join(table(record)))
    write_json(record, options.json)


if __name__ == "__main__":
    main()
