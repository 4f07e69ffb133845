"""Time the scoring of point groups as in `prepare`: our decoder and, as baselines, segment_anything's own code.

    python benchmarks/bench_targets.py --json runs/bench-targets.json
    python benchmarks/bench_targets.py --real
    python benchmarks/bench_targets.py --checkpoint sam_vit_b_01ec64.pth --device cuda --objects 50

The first baseline is the code of segment_anything's README: `SamPredictor.set_image` once an image, one
`SamPredictor.predict` a group, the mask with the highest predicted IoU, and its IoU with the true mask in NumPy. The
second decodes all groups of an object at once with `predict_torch`. Ours decodes the groups of all objects of an image
in batches. "decode" is from the image embedding to the IoU at the image's size of every group; "encode" is the image
encoder; "prepare" is both. "same" is the share of groups whose IoU differs from the first baseline's by at most 0.001.
All compute in float32. --real uses a SAM ViT-B with random weights, and scenes of 640 x 480 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from plain_code import half_pixel_xy
from real_size import random_sam
from script import Figures, add_size, parser_of, positive, report
from segment_anything import SamPredictor
from timing import rows_of, shares_of, take_turns

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box
from sam4mllm.segmenters.base import Embeddings
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.synthetic.scenes import make_scene
from sam4mllm.targets.sampling import draw_groups, seeded_rng
from sam4mllm.targets.scoring import Candidate, score_groups

ONE = "segment_anything, one group at a time"
ALL = "segment_anything, an object's groups at once"
OURS = "sam4mllm, {} prompts at once"
TOLERANCE = 1e-3
OBJECTS_PER_IMAGE = (3, 2)
"""Objects of the scenes by turns: 2.5 on average, as RefCOCO's images have phrases."""

Ious = npt.NDArray[np.float32]
Images = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Work:
    """An image, its embedding, and its objects with their groups."""

    image: npt.NDArray[np.uint8]
    embedded: Embeddings
    candidates: list[Candidate]


def scenes_of(
    objects: int, groups: int, seed: int, size_wh: tuple[int, int] | None = None
) -> list[tuple[npt.NDArray[np.uint8], list[Candidate]]]:
    """Return images with `objects` objects in all, 3 and 2 by turns, and the objects' groups.

    A group has two positive points and one negative one, and the true box.

    Args:
        objects: The number of objects.
        groups: The number of groups of each object.
        seed: Of the scenes and points.
        size_wh: The size to which the scenes are enlarged; None to keep theirs.
    """
    scenes: list[tuple[npt.NDArray[np.uint8], list[Candidate]]] = []
    while objects > 0:
        number = len(scenes)
        scene = make_scene(seed, number)
        masks = [shape.mask for shape in scene.shapes[: min(OBJECTS_PER_IMAGE[number % 2], objects)]]
        objects -= len(masks)
        image = scene.image
        if size_wh is not None:
            image = np.asarray(Image.fromarray(image).resize(size_wh))
            masks = [np.array(Image.fromarray(mask).resize(size_wh)) for mask in masks]
        scenes.append((image, [_candidate(mask, f"{number}/{i}", groups, seed) for i, mask in enumerate(masks)]))
    return scenes


def _candidate(mask: npt.NDArray[np.bool_], name: str, groups: int, seed: int) -> Candidate:
    rows, columns = np.nonzero(mask)
    box = Box(*(float(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    rng = seeded_rng(seed, "points", name)
    drawn = draw_groups(mask, box, rng, groups=groups, positives=2, negatives=1, margin=0.1)
    boxes = np.array([box], dtype=np.float32)
    return Candidate(mask, drawn, boxes, boxes)


def ours(segmenter: SegmentAnything, works: Sequence[Work], batch_size: int) -> Ious:
    """Return the IoU (objects, groups + 1) by our decoder; the last column is the box alone."""
    scores = [each for w in works for each in score_groups(segmenter, w.embedded, w.candidates, batch_size)]
    return np.stack([np.append(each.ious, np.float32(each.box_iou)) for each in scores])


def one_by_one(predictor: SamPredictor, works: Sequence[Work]) -> Ious:
    """Return the same by `SamPredictor.predict`, one group at a time."""
    rows = []
    for work in works:
        _set_image(predictor, work.embedded)
        half_xy = half_pixel_xy(predictor)
        for candidate in work.candidates:
            box, xy = candidate.box_only_xyxy[0] - np.tile(half_xy, 2), candidate.groups.xy - half_xy
            row = []
            for points in (*xy, None):
                labels = None if points is None else candidate.groups.labels
                masks, predicted, _ = predictor.predict(points, labels, box)
                mask = masks[predicted.argmax()]
                union = np.logical_or(mask, candidate.truth).sum()
                row.append(np.logical_and(mask, candidate.truth).sum() / max(union, 1))
            rows.append(np.array(row, dtype=np.float32))
    return np.stack(rows)


@torch.no_grad()
def object_at_once(predictor: SamPredictor, works: Sequence[Work]) -> Ious:
    """Return the same by `SamPredictor.predict_torch`, all groups of an object at once."""
    rows = []
    for work in works:
        _set_image(predictor, work.embedded)
        for candidate in work.candidates:
            truth = torch.from_numpy(candidate.truth).to(predictor.device)
            xy, labels = torch.from_numpy(candidate.groups.xy), torch.from_numpy(candidate.groups.labels)
            box = torch.from_numpy(candidate.box_only_xyxy)
            ious = _ious(predictor, xy, labels.expand(len(xy), -1), box.repeat(len(xy), 1), truth)
            rows.append(torch.cat([ious, _ious(predictor, None, None, box, truth)]).cpu().numpy())
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
    points = None if xy is None else predictor.transform.apply_coords_torch(xy.to(device), size_hw) - 0.5
    boxes = predictor.transform.apply_boxes_torch(boxes.to(device), size_hw) - 0.5
    masks, predicted_ious, _ = predictor.predict_torch(points, None if labels is None else labels.to(device), boxes)
    best = masks[torch.arange(len(masks), device=device), predicted_ious.argmax(dim=1)]
    intersection = (best & truth).sum(dim=(1, 2)).float()
    return intersection / (best | truth).sum(dim=(1, 2)).clamp(min=1)


def same_ious(baseline: Ious, ious: Ious) -> float:
    """Return the share of IoUs that differ from the baseline's by at most `TOLERANCE`."""
    return float((np.abs(ious - baseline) <= TOLERANCE).mean())


def run(options: argparse.Namespace) -> Figures:
    """Return the settings, and the rows of "decode", "encode" and "prepare"."""
    if options.real:
        segmenter = SegmentAnything(random_sam("vit_b"), options.device)
        name, size_wh = "SAM ViT-B, random", (640, 480)
    else:
        loaded = load_segmenter(options.checkpoint, options.device)
        if not isinstance(loaded, SegmentAnything):
            raise ModelError(f"{options.checkpoint}: the baselines are segment_anything's; use one of its .pth files")
        segmenter, name, size_wh = loaded, options.checkpoint, None
    predictor = SamPredictor(segmenter.sam)
    scenes = scenes_of(options.objects, options.groups, options.seed, size_wh)
    works = [Work(image, segmenter.embed([image]), candidates) for image, candidates in scenes]
    decoding: dict[str, Callable[[], Ious]] = {ONE: partial(one_by_one, predictor, works)}
    if not options.one_baseline:
        decoding[ALL] = partial(object_at_once, predictor, works)
    decoding |= {OURS.format(size): partial(ours, segmenter, works, size) for size in options.batch_sizes}
    shares = shares_of("decode", {variant: decode() for variant, decode in decoding.items()}, same_ious, 0.999)
    # Each turn encodes the images with both implementations, and decodes with all.
    seconds = take_turns(
        {
            "set_image": lambda: [predictor.set_image(work.image) for work in works],
            "embed": lambda: [segmenter.embed([work.image]) for work in works],
            **decoding,
        },
        options.repeats,
        options.device,
    )
    encoding = {variant: seconds["embed" if variant.startswith("sam4mllm") else "set_image"] for variant in decoding}
    both = {
        variant: [encode + decode for encode, decode in zip(times, seconds[variant], strict=True)]
        for variant, times in encoding.items()
    }
    encoders = {"segment_anything, set_image": seconds["set_image"], "sam4mllm, embed": seconds["embed"]}
    rows = [
        *rows_of("decode", {variant: seconds[variant] for variant in decoding}, options.objects, "object", shares),
        *rows_of("encode", encoders, len(works), "image"),
        *rows_of("prepare", both, options.objects, "object", shares),
    ]
    settings = {"segmenter": name, "objects": options.objects, "images": len(works), "groups": options.groups}
    return settings, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__, real=True)
    parser.add_argument("--checkpoint", default="shapes", help="a SAM's .pth (default: shapes, the embedded one)")
    add_size(parser, "--objects", "objects", default=10, small=5, real=2)
    add_size(parser, "--groups", "groups of points per object", default=64, small=64, metavar="K")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[16, 64], metavar="N", help="default: 16 64")
    parser.add_argument("--one-baseline", action="store_true", help="leave out the second baseline")
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
