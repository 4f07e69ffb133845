"""Train the embedded SAM from scratch: segment_anything's own classes, on `shapes` scenes generated during training.

    python toy_models/build_segmenter.py --work runs/build-segmenter --steps 6000

Seeded and resumable: step N has the same scenes and prompts in every run, and a second call resumes from the last
checkpoint in `--work`. Figures are logged to `log.jsonl` there; the finished `.pth` is saved to
`sam4mllm/models/segmenter/`. In addition to SAM's own losses an auxiliary head predicts, from each image token, the
color of its 4 x 4 cells and the borders of shapes; with it a vision transformer learns outlines in fewer steps. The
head is not saved with the model.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from building import Checkpoint, Log, adamw, begin, build_options, learning_rate
from torch import Tensor, nn

from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.segment_anything import save_checkpoint
from sam4mllm.synthetic.scenes import COLOURS, Scene, make_scene

SCENE_SEED = 7_000_001
HELD_OUT_SEED = 7_000_002
ARCHITECTURE = SamArchitecture(
    image_size=256,
    patch_size=16,
    embed_dim=160,
    depth=6,
    num_heads=5,
    mlp_ratio=3.0,
    use_rel_pos=False,
    window_size=0,
    prompt_embed_dim=96,
    decoder_heads=4,
    decoder_mlp_dim=384,
    iou_head_hidden_dim=96,
)
PROMPTS_PER_SCENE = 16


def load_scene(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return image (3, 256, 256), masks (n, 256, 256) float and color classes (256, 256), padded right and bottom.

    The scenes are at most 256 pixels wide and high, and SAM's input has its longer side at 256: every scene has one
    side of 256.
    """
    width, height = scene.size_wh
    image = torch.zeros(3, 256, 256)
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1).float()
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    image[:, :height, :width] = (pixels - mean) / std
    masks = torch.zeros(len(scene.shapes), 256, 256)
    classes = torch.zeros(256, 256, dtype=torch.long)
    for index, shape in enumerate(scene.shapes):
        mask = torch.from_numpy(shape.mask)
        masks[index, :height, :width] = mask.float()
        classes[:height, :width][mask] = 1 + list(COLOURS).index(shape.colour)
    return image, masks, classes


def draw_prompts(
    rng: np.random.Generator, scene: Scene, count: int, points: int, with_box: bool, exact: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sample `count` prompts for one scene; with `exact`, boxes are not jittered and only the last point is negative.

    Returns object indexes (count,), boxes (count, 4), points (count, points, 2) and labels (count, points).
    """
    chosen = rng.integers(len(scene.shapes), size=count)
    boxes = np.zeros((count, 4), dtype=np.float32)
    xy = np.zeros((count, points, 2), dtype=np.float32)
    labels = np.zeros((count, points), dtype=np.int64)
    width, height = scene.size_wh
    for row, index in enumerate(chosen):
        shape = scene.shapes[index]
        box = np.array(shape.box, dtype=np.float32)
        sides = np.array([shape.box.width, shape.box.height] * 2)
        if not exact and rng.random() < 0.7:
            box = box + rng.normal(0, 0.07, 4) * sides
        boxes[row] = np.clip(box, 0, [width, height, width, height])
        inside_rows, inside_columns = np.nonzero(shape.mask)
        x1, y1, x2, y2 = shape.box.widen(0.1, scene.size_wh)
        crop = shape.mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        outside_rows, outside_columns = np.nonzero(~crop)
        for column in range(points):
            # A prompt without a box needs a positive first point; the others are positive or negative.
            positive = rng.random() < 0.6 or (column == 0) or outside_rows.size == 0
            if exact:
                positive = column < points - 1
            if positive:
                pick = rng.integers(inside_rows.size)
                xy[row, column] = inside_columns[pick] + 0.5, inside_rows[pick] + 0.5
            else:
                pick = rng.integers(outside_rows.size)
                xy[row, column] = int(x1) + outside_columns[pick] + 0.5, int(y1) + outside_rows[pick] + 0.5
            labels[row, column] = int(positive)
    return chosen, boxes, xy, labels


def decode(
    sam: Any, embedding: Tensor, boxes: Tensor | None, xy: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return all four low-resolution masks (n, 4, 64, 64) and predicted IoUs (n, 4) for prompts of one image."""
    # segment_anything's prompt encoder adds 0.5 to coordinates, and ours are continuous already.
    sparse, dense = sam.prompt_encoder(
        points=None if xy is None or labels is None else (xy - 0.5, labels),
        boxes=None if boxes is None else boxes - 0.5,
        masks=None,
    )
    masks, iou = sam.mask_decoder.predict_masks(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return masks, iou


def mask_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return BCE + dice (n, m) of each mask (n, m, 64, 64) against the soft true mask (n, 64, 64)."""
    target = truth[:, None].expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    near = 1 + 4 * (target > 0).float()
    bce = (bce * near).sum((2, 3)) / near.sum((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    return 5 * bce + dice


class AuxiliaryHead(nn.Module):
    """A head that predicts, per image token, 4 x 4 cells x (9 color classes + 1 border); not saved with the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(width, 16 * 10, 1)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of colors (B, 9, 64, 64) and of borders (B, 64, 64)."""
        maps = F.pixel_shuffle(self.out(embedding), 4).float()
        return maps[:, :9], maps[:, 9]


def embed_scenes(sam: Any, auxiliary: AuxiliaryHead, scenes: Sequence[Scene]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the masks (n, 256, 256) of each scene, the embeddings of all, and the loss of the auxiliary head."""
    images, masks, classes = zip(*map(load_scene, scenes), strict=True)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = sam.image_encoder(torch.stack(images))
    return list(masks), embeddings, _auxiliary_loss(auxiliary, embeddings, torch.stack(classes))


def _auxiliary_loss(auxiliary: AuxiliaryHead, embeddings: Tensor, classes: Tensor) -> Tensor:
    """Return the loss of the auxiliary head on embedded scenes with color classes (B, 256, 256)."""
    with torch.autocast("cpu", torch.bfloat16):
        colours, borders = auxiliary(embeddings)
    classes = classes[:, 2::4, 2::4]
    border = torch.zeros_like(borders)
    border[:, 1:] += (classes[:, 1:] != classes[:, :-1]).float()
    border[:, :, 1:] += (classes[:, :, 1:] != classes[:, :, :-1]).float()
    return F.cross_entropy(colours, classes) + F.binary_cross_entropy_with_logits(borders, border.clamp(max=1))


def train_step(sam: Any, auxiliary: AuxiliaryHead, step: int, batch: int) -> dict[str, Tensor]:
    """Return the losses of one step and the mean IoU of its masks."""
    # 1. Embed the scenes; the auxiliary loss is on colors and borders.
    rng = np.random.default_rng([SCENE_SEED, 1, step])
    scenes = [make_scene(SCENE_SEED, step * batch + k) for k in range(batch)]
    all_masks, embeddings, aux = embed_scenes(sam, auxiliary, scenes)

    # 2. Decode prompts of each scene; the losses are SAM's.
    losses, iou_losses, ious = [], [], []
    for masks, scene, embedding in zip(all_masks, scenes, embeddings, strict=True):
        points = int(rng.integers(0, 5))
        with_box = points == 0 or rng.random() < 0.75
        chosen, boxes, xy, labels = draw_prompts(rng, scene, PROMPTS_PER_SCENE, points, with_box)
        with torch.autocast("cpu", torch.bfloat16):
            logits, iou = decode(
                sam,
                embedding,
                torch.from_numpy(boxes) if with_box else None,
                torch.from_numpy(xy) if points else None,
                torch.from_numpy(labels) if points else None,
            )
        logits, iou = logits.float(), iou.float()
        truth = F.avg_pool2d(masks[torch.from_numpy(chosen)][:, None], 4)[:, 0]
        each = mask_losses(logits, truth)
        losses.append(each.mean())
        with torch.no_grad():
            on, true = logits > 0, (truth > 0.5)[:, None]
            actual_iou = (on & true).sum((2, 3)) / (on | true).sum((2, 3)).clamp(min=1)
        iou_losses.append(F.mse_loss(iou, actual_iou))
        ious.append(actual_iou.mean())
    return {
        "mask": torch.stack(losses).mean(),
        "iou_head": torch.stack(iou_losses).mean(),
        "aux": aux,
        "iou": torch.stack(ious).mean(),
    }


@torch.no_grad()
def held_out(sam: Any, scenes: int) -> dict[str, float]:
    """Return the mean IoU on held-out scenes, at full size, of the mask with the highest predicted IoU.

    Prompts: the true box with 2 + 1 points, the box alone, 2 + 1 points alone.
    """
    sam.eval()
    ious: dict[str, list[float]] = {"box_points": [], "box": [], "points": []}
    for index in range(scenes):
        scene = make_scene(HELD_OUT_SEED, index)
        rng = np.random.default_rng([HELD_OUT_SEED, 1, index])
        image, masks, _ = load_scene(scene)
        embedding = sam.image_encoder(image[None])[0]
        chosen, boxes, xy, labels = draw_prompts(rng, scene, 8, 3, True, exact=True)
        b, p, lab = torch.from_numpy(boxes), torch.from_numpy(xy), torch.from_numpy(labels)
        truth = masks[torch.from_numpy(chosen)] > 0.5
        for name, args in {"box_points": (b, p, lab), "box": (b, None, None), "points": (None, p, lab)}.items():
            logits, iou = decode(sam, embedding, *args)
            best = logits[torch.arange(8), 1 + iou[:, 1:].argmax(1)]
            on = F.interpolate(best[:, None], (256, 256), mode="bilinear", align_corners=False)[:, 0] > 0
            ious[name] += ((on & truth).sum((1, 2)) / (on | truth).sum((1, 2)).clamp(min=1)).tolist()
    sam.train()
    return {name: float(np.mean(values)) for name, values in ious.items()}


def train_from_checkpoint(
    sam: Any,
    auxiliary: AuxiliaryHead,
    losses_of_step: Callable[[int], dict[str, Tensor]],
    evaluate: Callable[[bool], dict[str, Any]],
    options: Namespace,
    output: Path,
) -> None:
    """Train to the last step, from the last checkpoint if there is one, and save the model to the folder `output`.

    `evaluate` is called every 500 steps with whether it is the last time; its figures are logged.
    """
    parameters = [*sam.parameters(), *auxiliary.parameters()]
    optimizer = adamw(parameters, 0.02, (0.9, 0.98))
    checkpoint = Checkpoint(options.work / "last.pt", {"sam": sam, "helper": auxiliary, "optimiser": optimizer})
    start, log = checkpoint.load(), Log(options.work)
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate, warm=200, falling=0.4)
        parts = losses_of_step(step)
        loss = parts["mask"] + parts["iou_head"] + (0.5 if step < options.steps * 0.6 else 0.1) * parts["aux"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        log.count(parts)
        last = step + 1 == options.steps
        if (step + 1) % 500 == 0 or last:
            log.report(step + 1, held_out=evaluate(last))
            checkpoint.save(step + 1)
        elif (step + 1) % 100 == 0:
            log.report(step + 1)
    output.mkdir(parents=True, exist_ok=True)
    # Half precision halves the package's size; `load_checkpoint` converts to the requested dtype.
    save_checkpoint(output / "sam_shapes.pth", sam.half(), ARCHITECTURE)


def main() -> None:
    """Parse the options and train, from the last checkpoint if there is one."""
    parser = build_options(__doc__, steps=6000, batch=4, learning_rate=1e-3)
    parser.add_argument(
        "--output", type=Path, default=Path("sam4mllm/models/segmenter"), help="folder for the finished model"
    )
    options = parser.parse_args()
    begin(options)
    sam, auxiliary = ARCHITECTURE.build().train(), AuxiliaryHead(ARCHITECTURE.prompt_embed_dim)
    train_from_checkpoint(
        sam,
        auxiliary,
        lambda step: train_step(sam, auxiliary, step, options.batch),
        lambda last: held_out(sam, 200 if last else 40),
        options,
        options.output,
    )


if __name__ == "__main__":
    main()
