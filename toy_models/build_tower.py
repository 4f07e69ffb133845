"""Pre-train the embedded MLLM's vision tower: a narrow timm ResNet with an auxiliary head, on `shapes` scenes.

    python toy_models/build_tower.py --work runs/build-tower --steps 1200

From each of the 12 x 12 image tokens the head predicts linearly whether the token is on a shape, that shape's color,
silhouette, pattern and box, and which of the token's 4 x 4 cells it covers. Seeded and resumable like
`build_segmenter.py`; the result is `tower.pt` in `--work`, from which `build_mllm.py` starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from building import Checkpoint, Log, adamw, begin, build_options, learning_rate
from PIL import Image
from timm.models.resnet import ResNet
from torch import Tensor, nn

from sam4mllm.synthetic.scenes import COLOURS, PATTERNS, Scene, make_scene
from sam4mllm.synthetic.silhouettes import SILHOUETTES

SCENE_SEED = 8_000_001
HELD_OUT_SEED = 8_000_002
SIDE, CELLS = 192, 12
ARCHITECTURE = "resnet10t"
MODEL_ARGS: dict[str, Any] = {"channels": [32, 64, 128, 192], "layers": [1, 1, 2, 2], "output_stride": 16}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
WIDTHS = {
    "object": 1,
    "colour": len(COLOURS),
    "name": len(SILHOUETTES),
    "pattern": len(PATTERNS),
    "box": 4,
    "cells": 16,
    "place": 2,
}


def pixels(scene: Scene) -> Tensor:
    """Return the image resized to (3, 192, 192), normalized like the shipped processor's."""
    image = Image.fromarray(scene.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def owners(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the shape that covers each token most (12, 12), -1 for none, and its cover (12, 12, 16)."""
    width, height = scene.size_wh
    rows = ((np.arange(SIDE) + 0.5) * height / SIDE).astype(int)
    columns = ((np.arange(SIDE) + 0.5) * width / SIDE).astype(int)
    shares = []
    for shape in scene.shapes:
        small = shape.mask[np.ix_(rows, columns)]
        shares.append(
            small.reshape(CELLS, 4, 4, CELLS, 4, 4).mean((2, 5)).transpose(0, 2, 1, 3).reshape(CELLS, CELLS, 16)
        )
    stacked = np.stack(shares)
    total = stacked.mean(-1)
    owner = total.argmax(0)
    cover = np.take_along_axis(stacked, owner[None, :, :, None], 0)[0]
    owner = np.where(total.max(0) >= 0.15, owner, -1)
    return owner, cover.astype(np.float32)


def targets(scene: Scene) -> dict[str, Tensor]:
    """Return the targets of the head for each token (12, 12, ...)."""
    owner, cover = owners(scene)
    width, height = scene.size_wh
    colours, names = list(COLOURS), list(SILHOUETTES)
    facts = np.array([[colours.index(s.colour), names.index(s.name), PATTERNS.index(s.pattern)] for s in scene.shapes])
    boxes = np.array([s.box for s in scene.shapes], dtype=np.float32) / [width, height, width, height]
    of_token = facts[owner]
    place = places(owner, cover)
    return {
        "object": torch.from_numpy(owner >= 0).float(),
        "colour": torch.from_numpy(of_token[..., 0]),
        "name": torch.from_numpy(of_token[..., 1]),
        "pattern": torch.from_numpy(of_token[..., 2]),
        "box": torch.from_numpy(boxes[owner].astype(np.float32)),
        "cells": torch.from_numpy(cover),
        "place": torch.from_numpy(place),
    }


def places(owner: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return a place (x, y) in 0..1 for each token (12, 12, 2) float32: on its shape, or the center of the token.

    On a shape it is the center of the covered cell that is nearest to the centroid of the token's covered part.
    """
    corner = np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)), -1).astype(np.float32)
    cell = (np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(16, 2) + 0.5) / 4
    weight = cover / np.maximum(cover.sum(-1, keepdims=True), 1e-6)
    centroid = weight @ cell
    distance = np.linalg.norm(cell - centroid[..., None, :], axis=-1)
    nearest = np.where(cover > 0.5, distance, 10 - cover).argmin(-1)
    inside = np.where((owner >= 0)[..., None], cell[nearest], 0.5)
    return ((corner + inside) / CELLS).astype(np.float32)


class Head(nn.Module):
    """The auxiliary head: a linear layer per target from a token's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.ModuleDict({name: nn.Linear(width, size) for name, size in WIDTHS.items()})

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        """Return the predictions (B, 12, 12, width) of each target from features (B, C, 12, 12)."""
        tokens = maps.permute(0, 2, 3, 1).float()
        return {name: layer(tokens) for name, layer in self.out.items()}


def losses(out: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss of each target; all but "object" are on the tokens that are on a shape."""
    on = truth["object"] > 0.5
    parts = {"object": F.binary_cross_entropy_with_logits(out["object"][..., 0], truth["object"])}
    for name in ("colour", "name", "pattern"):
        parts[name] = F.cross_entropy(out[name][on], truth[name][on])
    parts["box"] = 5 * F.smooth_l1_loss(out["box"][on], truth["box"][on], beta=0.05)
    parts["place"] = 10 * F.smooth_l1_loss(out["place"], truth["place"], beta=0.02)
    parts["cells"] = F.binary_cross_entropy_with_logits(out["cells"][on], truth["cells"][on])
    return parts


def load_batch(seed: int, first: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the images (count, 3, 192, 192) of scenes and their targets."""
    scenes = [make_scene(seed, first + k, shared_boxes=0.5) for k in range(count)]
    images = torch.stack([pixels(scene) for scene in scenes]).to(memory_format=torch.channels_last)
    each = [targets(scene) for scene in scenes]
    return images, {name: torch.stack([t[name] for t in each]) for name in WIDTHS}


def build_tower() -> ResNet:
    """Return the vision tower with random weights."""
    return timm.create_model(ARCHITECTURE, num_classes=0, **MODEL_ARGS).to(memory_format=torch.channels_last)


@torch.no_grad()
def held_out(tower: ResNet, head: Head, count: int = 128) -> dict[str, float]:
    """Return the accuracy of each target on held-out scenes (for boxes the mean absolute error)."""
    tower.eval()
    images, truth = load_batch(HELD_OUT_SEED, 0, count)
    out = head(tower.forward_features(images))
    tower.train()
    on = truth["object"] > 0.5
    figures = {
        name: float((out[name].argmax(-1) == truth[name])[on].float().mean()) for name in ("colour", "name", "pattern")
    }
    figures["object"] = float(((out["object"][..., 0] > 0) == on).float().mean())
    figures["place_l1"] = float((out["place"] - truth["place"]).abs().mean())
    figures["box_l1"] = float((out["box"] - truth["box"])[on].abs().mean())
    figures["cells"] = float(((out["cells"] > 0) == (truth["cells"] > 0.5))[on].float().mean())
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Parse the options and train, from the last checkpoint if there is one."""
    options = build_options(__doc__, steps=1200, batch=32, learning_rate=2e-3).parse_args()
    begin(options)
    tower, head = build_tower(), Head(MODEL_ARGS["channels"][-1])
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = adamw(parameters, 0.05, (0.9, 0.999))
    checkpoint = Checkpoint(options.work / "tower.pt", {"tower": tower, "head": head, "optimiser": optimizer})
    start, log = checkpoint.load(), Log(options.work)
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, step / options.steps, options.learning_rate, warm=100, falling=0.4)
        images, truth = load_batch(SCENE_SEED, step * options.batch, options.batch)
        with torch.autocast("cpu", torch.bfloat16):
            maps = tower.forward_features(images)
        parts = losses(head(maps), truth)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        log.count(parts)
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            log.report(step + 1, held_out=held_out(tower, head))
            checkpoint.save(step + 1)


if __name__ == "__main__":
    main()
