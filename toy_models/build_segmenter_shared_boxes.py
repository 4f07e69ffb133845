"""Train a SAM from scratch for which points matter: on scenes in which many shapes share their box with another.

    python toy_models/build_segmenter_shared_boxes.py --work runs/build-segmenter-shared-boxes

The candidate for the next embedded segmenter (`toy_models/candidates/`); the demo still uses that of
`build_segmenter.py`, whose classes, losses and loading of scenes this script shares. In these scenes a box does not
identify the object (a shape on another one of nearly the same size), so SAM has to use the points.

What differs, after SAM's own training (Kirillov et al. 2023, arXiv 2304.02643, appendix A):

- Of the three masks only the one with the lowest loss is supervised; with several points, the fourth mask is, too.
- Half of the prompts have a loose box (each side off by up to 30 %) with points, a third have points only. Nearly exact
  boxes appear in the last 40 % of the steps only, so that the decoder does not learn to ignore points.
- In half of the cases a second round adds a point from the region where the first mask is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from build_segmenter import (
    ARCHITECTURE,
    HELD_OUT_SEED,
    PROMPTS_PER_SCENE,
    SCENE_SEED,
    AuxiliaryHead,
    decode,
    embed_scenes,
    load_scene,
    mask_losses,
    train_from_checkpoint,
)
from building import begin, build_options
from torch import Tensor

from sam4mllm.synthetic.scenes import Scene, make_scene

SHARED_BOXES = 0.5
# Positive and negative points of a prompt; each pair is equally frequent.
_POINTS = ((1, 0), (2, 0), (1, 1), (2, 1), (3, 1), (2, 2))
# The scenes of a training step are numbered from here on; smaller numbers are used elsewhere.
_FIRST_SCENE = 10_000_000


def shares_box(scene: Scene) -> npt.NDArray[np.bool_]:
    """Return, for each shape (n,), whether its box has an IoU above 0.5 with the box of another shape."""
    boxes = [shape.box for shape in scene.shapes]
    return np.array([any(a.iou(b) > 0.5 for j, b in enumerate(boxes) if j != i) for i, a in enumerate(boxes)])


def sample_prompts(
    rng: np.random.Generator, scene: Scene, chosen: npt.NDArray[np.int64], points: tuple[int, int], box_sigma: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Sample a prompt for each chosen shape: boxes (n, 4), points (n, k, 2), labels (n, k).

    `points` is the number of positive and of negative ones; negative points are in the box widened by 10 %.
    """
    count, (positives, negatives) = len(chosen), points
    width, height = scene.size_wh
    boxes = np.zeros((count, 4), dtype=np.float32)
    xy = np.zeros((count, positives + negatives, 2), dtype=np.float32)
    labels = np.zeros((count, positives + negatives), dtype=np.int64)
    for row, index in enumerate(chosen):
        shape = scene.shapes[index]
        sides = np.array([shape.box.width, shape.box.height] * 2)
        shift = np.clip(rng.normal(0, box_sigma, 4), -0.3, 0.3) * sides
        boxes[row] = np.clip(np.array(shape.box) + shift, 0, [width, height, width, height])
        inside = np.nonzero(shape.mask)
        x1, y1, x2, y2 = shape.box.widen(0.1, scene.size_wh)
        left, top = int(x1), int(y1)
        rows, columns = np.nonzero(~shape.mask[top : int(np.ceil(y2)), left : int(np.ceil(x2))])
        outside = rows + top, columns + left
        for column in range(positives + negatives):
            positive = column < positives or rows.size == 0
            region = inside if positive else outside
            pick = rng.integers(region[0].size)
            xy[row, column] = region[1][pick] + 0.5, region[0][pick] + 0.5
            labels[row, column] = int(positive)
    return boxes, xy, labels


def error_points(
    rng: np.random.Generator, predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Sample a point from the region where masks (n, 64, 64) differ from the true ones: (n, 1, 2), labels (n, 1)."""
    count = len(predicted)
    xy, labels = np.zeros((count, 1, 2), dtype=np.float32), np.zeros((count, 1), dtype=np.int64)
    for row, wrong in enumerate(predicted ^ truth):
        rows, columns = np.nonzero(wrong if wrong.any() else truth[row])
        if rows.size == 0:
            rows, columns = np.array([32]), np.array([32])
        pick = rng.integers(rows.size)
        xy[row, 0] = columns[pick] * 4 + 2, rows[pick] * 4 + 2
        labels[row, 0] = int(truth[row, rows[pick], columns[pick]])
    return xy, labels


def train_step(sam: Any, auxiliary: AuxiliaryHead, step: int, steps: int, batch: int) -> dict[str, Tensor]:
    """Return the losses of one step, and the mean IoU of the best of the three masks."""
    rng = np.random.default_rng([SCENE_SEED, 2, step])
    first = _FIRST_SCENE + step * batch
    scenes = [make_scene(SCENE_SEED, first + k, shared_boxes=SHARED_BOXES) for k in range(batch)]
    all_masks, embeddings, aux = embed_scenes(sam, auxiliary, scenes)
    losses, iou_losses, ious = [], [], []
    for masks, scene, embedding in zip(all_masks, scenes, embeddings, strict=True):
        for loss, iou_loss, iou in _scene_losses(sam, rng, scene, masks, embedding, late=step > 0.6 * steps):
            losses.append(loss)
            iou_losses.append(iou_loss)
            ious.append(iou)
    parts = {"mask": losses, "iou_head": iou_losses, "iou": ious}
    return {name: torch.stack(values).mean() for name, values in parts.items()} | {"aux": aux}


def _scene_losses(
    sam: Any, rng: np.random.Generator, scene: Scene, masks: Tensor, embedding: Tensor, *, late: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return mask loss, loss of the IoU head and best IoU of each round of prompts of a scene."""
    # 1. The prompts: a third with points only, half with a box and points, the others with a box only.
    kind = rng.random()
    points = _POINTS[rng.integers(len(_POINTS))]
    box_sigma = 0.02 if late and rng.random() < 0.4 else 0.15
    weights = 1 + 1.5 * shares_box(scene)
    chosen = rng.choice(len(scene.shapes), size=PROMPTS_PER_SCENE, p=weights / weights.sum())
    boxes, xy, labels = sample_prompts(rng, scene, chosen, points, box_sigma)
    with_box = kind >= 0.35
    if kind >= 0.85:
        xy, labels = xy[:, :0], labels[:, :0]
    # 2. One or two rounds; the second adds a point where the mask with the highest predicted IoU is wrong.
    soft = F.avg_pool2d(masks[torch.from_numpy(chosen)][:, None], 4)[:, 0]
    truth, found = soft > 0.5, []
    rounds = 1 if rng.random() < 0.5 else 2
    for number in range(rounds):
        has_points = xy.shape[1] > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits, predicted_iou = decode(
                sam,
                embedding,
                torch.from_numpy(boxes) if with_box else None,
                torch.from_numpy(xy) if has_points else None,
                torch.from_numpy(labels) if has_points else None,
            )
        logits, predicted_iou, on = logits.float(), predicted_iou.float(), logits > 0
        each = mask_losses(logits, soft)
        best = each[:, 1:].min(1).values
        loss = (best + each[:, 0]) / 2 if xy.shape[1] >= 2 else best
        with torch.no_grad():
            iou = (on & truth[:, None]).sum((2, 3)) / (on | truth[:, None]).sum((2, 3)).clamp(min=1)
        found.append((loss.mean(), F.mse_loss(predicted_iou, iou), iou[:, 1:].max(1).values.mean()))
        if number + 1 < rounds:
            best_mask = on[torch.arange(len(chosen)), 1 + predicted_iou[:, 1:].argmax(1)]
            more_xy, more_labels = error_points(rng, best_mask.numpy(), truth.numpy())
            xy, labels = np.concatenate([xy, more_xy], 1), np.concatenate([labels, more_labels], 1)
    return found


@torch.no_grad()
def held_out(sam: Any, scenes: int, groups: int = 8) -> dict[str, dict[str, float]]:
    """Return the mean IoU on held-out scenes, at full size, of the mask with the highest predicted IoU.

    Over all shapes, and over those that share their box: with the true box alone; with the box and the best, or an
    average, of `groups` random groups of 2 + 1 points; and with one group alone.
    """
    sam.eval()
    names = ("box", "box_best_group", "box_random_group", "points")
    ious: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in names} for kind in ("all", "shared")}
    for index in range(scenes):
        scene = make_scene(HELD_OUT_SEED, index, shared_boxes=SHARED_BOXES)
        rng = np.random.default_rng([HELD_OUT_SEED, 2, index])
        image, masks, _ = load_scene(scene)
        embedding, count = sam.image_encoder(image[None])[0], len(scene.shapes)
        boxes, xy, labels = (
            torch.from_numpy(each)
            for each in sample_prompts(rng, scene, np.tile(np.arange(count), groups), (2, 1), box_sigma=0.0)
        )
        both = _ious(sam, embedding, masks > 0.5, boxes, xy, labels).reshape(groups, count)
        values = {
            "box": _ious(sam, embedding, masks > 0.5, boxes[:count], None, None),
            "box_best_group": both.max(0),
            "box_random_group": both.mean(0),
            "points": _ious(sam, embedding, masks > 0.5, None, xy[:count], labels[:count]),
        }
        for name, value in values.items():
            ious["all"][name] += value.tolist()
            ious["shared"][name] += value[shares_box(scene)].tolist()
    sam.train()
    return {kind: {name: round(float(np.mean(v)), 4) for name, v in by.items()} for kind, by in ious.items()}


def _ious(
    sam: Any, embedding: Tensor, truth: Tensor, boxes: Tensor | None, xy: Tensor | None, labels: Tensor | None
) -> npt.NDArray[np.float32]:
    """Return the IoU (n,) of the mask with the highest predicted IoU; the true masks are repeated to n."""
    logits, predicted_iou = decode(sam, embedding, boxes, xy, labels)
    best = logits[torch.arange(len(logits)), 1 + predicted_iou[:, 1:].argmax(1)]
    on = F.interpolate(best[:, None], truth.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
    truth = truth.repeat(len(logits) // len(truth), 1, 1)
    return ((on & truth).sum((1, 2)) / (on | truth).sum((1, 2)).clamp(min=1)).numpy()


def main() -> None:
    """Parse the options and train, from the last checkpoint if there is one."""
    parser = build_options(__doc__, steps=8000, batch=4, learning_rate=1e-3)
    parser.add_argument("--output", type=Path, help="folder for the finished model; default: the folder --work")
    options = parser.parse_args()
    begin(options)
    sam, auxiliary = ARCHITECTURE.build().train(), AuxiliaryHead(ARCHITECTURE.prompt_embed_dim)
    train_from_checkpoint(
        sam,
        auxiliary,
        lambda step: train_step(sam, auxiliary, step, options.steps, options.batch),
        lambda last: held_out(sam, 100 if last else 40),
        options,
        options.output or options.work,
    )


if __name__ == "__main__":
    main()
