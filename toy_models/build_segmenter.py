"""Train the embedded SAM from scratch: segment_anything's own classes, on `shapes` scenes generated during training.

    python toy_models/build_segmenter.py --work runs/build-segmenter --steps 8000

Seeded and resumable: step N has the same scenes and prompts in every run, and a second call resumes from the last
checkpoint in `--work`. Figures are logged to `log.jsonl` there; the finished `.pth` is saved to
`sam4mllm/models/segmenter/`.

With probability 0.5 a shape is placed on another one of nearly the same size: a box does not identify such a shape, so
SAM has to use the points. Training follows SAM's own (Kirillov et al. 2023, arXiv 2304.02643, appendix A):

- Of the three masks only the one with the lowest loss is supervised; with several points, the fourth mask is, too.
- Half of the prompts have a loose box (each side off by up to 30 %) with points, a third have points only. Nearly exact
  boxes appear in the last 40 % of the steps only, so that the decoder does not learn to ignore points.
- In half of the cases a second round adds a point from the region where the first mask is wrong.
- An auxiliary head predicts, from each image token, the color of its 4 x 4 cells and the borders of shapes; with it a
  vision transformer learns outlines in fewer steps. The head is not saved with the model.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from building import Checkpoint, Log, adamw, begin, build_options, learning_rate
from segmenter_prompts import error_points, sample_prompts, shares_box, training_prompts
from torch import Tensor, nn

from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.segment_anything import save_checkpoint
from sam4mllm.synthetic.scenes import COLOURS, Scene, make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES

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
# Training scenes are numbered from here on.
_FIRST_SCENE = 10_000_000


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


def decode(
    sam: Any,
    embedding: Tensor,
    boxes: Tensor | None,
    xy: Tensor | None,
    labels: Tensor | None,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return all four low-resolution masks (n, 4, 64, 64) and predicted IoUs (n, 4) for prompts of one image.

    `tokens` (n, k, C) are further prompt tokens.
    """
    # segment_anything's prompt encoder adds 0.5 to coordinates, and ours are continuous already.
    sparse, dense = sam.prompt_encoder(
        points=None if xy is None or labels is None else (xy - 0.5, labels),
        boxes=None if boxes is None else boxes - 0.5,
        masks=None,
    )
    if tokens is not None:
        sparse = torch.cat([sparse, tokens], 1)
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
        colours, borders = auxiliary(embeddings)
    cells = torch.stack(classes)[:, 2::4, 2::4]
    border = torch.zeros_like(borders)
    border[:, 1:] += (cells[:, 1:] != cells[:, :-1]).float()
    border[:, :, 1:] += (cells[:, :, 1:] != cells[:, :, :-1]).float()
    loss = F.cross_entropy(colours, cells) + F.binary_cross_entropy_with_logits(borders, border.clamp(max=1))
    return list(masks), embeddings, loss


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
    chosen, boxes, xy, labels = training_prompts(rng, scene, PROMPTS_PER_SCENE, late)
    soft = F.avg_pool2d(masks[torch.from_numpy(chosen)][:, None], 4)[:, 0]
    truth, found = soft > 0.5, []
    # One or two rounds; the second adds a point where the mask with the highest predicted IoU is wrong.
    rounds = 1 if rng.random() < 0.5 else 2
    for number in range(rounds):
        has_points = xy.shape[1] > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits, predicted_iou = decode(
                sam,
                embedding,
                None if boxes is None else torch.from_numpy(boxes),
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


def train(sam: Any, auxiliary: AuxiliaryHead, options: Namespace) -> None:
    """Train to the last step, from the last checkpoint if there is one, and save the model to `options.output`."""
    parameters = [*sam.parameters(), *auxiliary.parameters()]
    optimizer = adamw(parameters, 0.02, (0.9, 0.98))
    checkpoint = Checkpoint(options.work / "last.pt", {"sam": sam, "auxiliary": auxiliary, "optimizer": optimizer})
    start, log = checkpoint.load(), Log(options.work)
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, step / options.steps, options.learning_rate, warm=200, falling=0.4)
        parts = train_step(sam, auxiliary, step, options.steps, options.batch)
        loss = parts["mask"] + parts["iou_head"] + (0.5 if step < options.steps * 0.6 else 0.1) * parts["aux"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        log.count(parts)
        last = step + 1 == options.steps
        if (step + 1) % 500 == 0 or last:
            log.report(step + 1, held_out=held_out(sam, 100 if last else 40))
            checkpoint.save(step + 1)
        elif (step + 1) % 100 == 0:
            log.report(step + 1)
    options.output.mkdir(parents=True, exist_ok=True)
    # Half precision halves the package's size; `load_checkpoint` converts to the requested dtype.
    save_checkpoint(options.output / "sam_shapes.pth", sam.half(), ARCHITECTURE)


def main() -> None:
    """Parse the options and train, from the last checkpoint if there is one."""
    parser = build_options(__doc__, steps=8000, batch=4, learning_rate=1e-3)
    parser.add_argument(
        "--output", type=Path, default=Path("sam4mllm/models/segmenter"), help="folder for the finished model"
    )
    options = parser.parse_args()
    begin(options)
    train(ARCHITECTURE.build().train(), AuxiliaryHead(ARCHITECTURE.prompt_embed_dim), options)


if __name__ == "__main__":
    main()
