"""Exchanges with location tokens for the embedded MLLM, as token rows and as batches of them.

    Where is "the red ring"? Mark each object.          <location>
    Where is "all the pink stars"? Mark each object.    <location><location>
    What is at <location>?                              the red ring
    Describe the image, and mark each object that you name.
                                                        the blue star<location>, the red ring<location>

The questions and answers are those of the method pix2emb. The state at a location token of an answer has to hold the
box, and a point well inside the visible part of the shape, to whose image token the supervised heads for points attend.
Regions of questions are boxes of shapes that share their box with no other one, so that the box identifies the shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from build_tower import CELLS
from mllm_batches import Batch, collate
from mllm_pointing import exchanges, interior_point
from mllm_rows import ANSWER_LAYER, LINK_LAYER, POINT, REGION, Packed, Packer, Row
from mllm_text import Exchange, box_exchanges, left_to_right
from segmenter_prompts import shares_box
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sam4mllm.prompts.answer_form import NO_OBJECT
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.prompts.questions import REGION as REGION_TEXT
from sam4mllm.prompts.questions import ask_grounded_caption, ask_list, ask_region_caption
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES

SCENE_SEED = 9_000_005
HELD_OUT_SEED = 9_000_006
# The rows of an image with location tokens, and those with exchanges of the former pre-training.
_LOCATION_ROWS, _FORMER_ROWS = 4, 1
# The share of the images in which shapes share boxes, as in the pre-training.
_SHARED_IMAGES = 0.8
_WEIGHT = 2.0


@dataclass(frozen=True)
class LocationBatch:
    """A `Batch` with its N location tokens: in `at` (N, 3) are the image, the position and whether it is a region.

    `shapes` (N,) are the shapes' indexes in their scenes; `boxes` (N, 4) and `points` (N, 2) are shares of the image's
    width and height, and `points_xy` (N, 2) pixels.
    """

    scenes: list[Scene]
    batch: Batch
    at: Tensor
    shapes: Tensor
    boxes: Tensor
    points: Tensor
    points_xy: Tensor


def location_exchanges(scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    """Return about two dozen exchanges with location tokens about one scene."""
    found = []
    for each in box_exchanges(scene, rng):
        if each.kind in ("describe", "copy"):
            continue
        question = each.question.replace(ask_list(), "Mark each object.")
        answer = LOCATION_TOKEN * len(each.answer_shapes) or NO_OBJECT
        found.append(_with_points(scene, replace(each, question=question, answer=answer)))
    names = [f"the {shape.colour} {shape.name}" for shape in scene.shapes]
    order = left_to_right(scene, tuple(range(len(names))))
    caption = ", ".join(names[index] + LOCATION_TOKEN for index in order)
    found.append(_with_points(scene, Exchange("list", ask_grounded_caption(), caption, order)))
    question = ask_region_caption().replace(REGION_TEXT, LOCATION_TOKEN)
    start = question.index(LOCATION_TOKEN)
    for index in np.flatnonzero(~shares_box(scene)).tolist():
        spans = ((start, start + len(LOCATION_TOKEN), (index,)),)
        found.append(Exchange("region", question, names[index], (index,), spans))
    return found


def _with_points(scene: Scene, exchange: Exchange) -> Exchange:
    return replace(
        exchange, answer_points=tuple(interior_point(scene.shapes[index]) for index in exchange.answer_shapes)
    )


class LocationPacker(Packer):
    """A packer of exchanges with and without location tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer)
        self.location: int = tokenizer.convert_tokens_to_ids(LOCATION_TOKEN)

    def _row(self, exchange: Exchange, cells: list[list[int]], size_wh: tuple[int, int]) -> Row:
        row = super()._row(exchange, cells, size_wh)
        at = [i for i, token in enumerate(row.ids) if token == self.location]
        is_region = exchange.kind == "region"
        if not at:
            return row
        # 1. A location token in an answer attends to the words of its phrase, its shape and the point inside it; an
        # answer about a region attends to the region and its shape.
        shapes = exchange.answer_shapes
        words = [target for layer, _, _, to in row.attention_targets if layer == LINK_LAYER for target in to]
        on = [i for i, label in enumerate(row.labels) if label >= 0]
        for position, shape in zip(on if is_region else at, shapes * len(on) if is_region else shapes, strict=False):
            if words:
                row.attention_targets.append((LINK_LAYER, REGION, position, words))
            tokens = [self.first_image + cell for cell in cells[shape]]
            row.attention_targets.append((ANSWER_LAYER, REGION, position, tokens or [0]))
        if not is_region:
            for position, point in zip(at, exchange.answer_points, strict=True):
                column, line = (min(int(v / s * CELLS), CELLS - 1) for v, s in zip(point, size_wh, strict=True))
                row.attention_targets.append(
                    (ANSWER_LAYER, POINT, position, [self.first_image + line * CELLS + column])
                )
        # 2. The location tokens.
        row.locations = [(position, shape, is_region) for position, shape in zip(at, shapes, strict=True)]
        row.weights = [_WEIGHT * weight for weight in row.weights]
        return row


def make_batch(packer: LocationPacker, seed: int, first: int, count: int, former: bool = True) -> LocationBatch:
    """Return a batch of the images `first` and following ones; `former` adds exchanges of the former pre-training."""
    scenes, packed = [], []
    for index in range(first, first + count):
        rng = np.random.default_rng([seed, 1, index])
        scene = make_scene(seed, index, shared_boxes=SHARED_BOXES if rng.random() < _SHARED_IMAGES else 0.0)
        located = _packed(packer, scene, location_exchanges(scene, rng), rng, _LOCATION_ROWS)
        if former:
            located.rows += _packed(packer, scene, exchanges(scene, rng), rng, _FORMER_ROWS).rows
        scenes.append(scene)
        packed.append(located)
    return _located(scenes, packed, packer)


def _packed(packer: LocationPacker, scene: Scene, about: list[Exchange], rng: np.random.Generator, rows: int) -> Packed:
    return packer.pack(scene, [about[i] for i in rng.permutation(len(about))], rng, rows)


def _located(scenes: list[Scene], packed: list[Packed], packer: LocationPacker) -> LocationBatch:
    batch = Batch.of_arrays(collate(packed, [], packer), torch.device("cpu"))
    prefix, _, length = batch.layout
    at, shapes, boxes, points = [], [], [], []
    for image, (scene, each) in enumerate(zip(scenes, packed, strict=True)):
        for number, row in enumerate(each.rows):
            for position, index, is_region in row.locations:
                at.append((image, prefix + number * length + position, int(is_region)))
                shapes.append(index)
                boxes.append(tuple(scene.shapes[index].box.to_shares(scene.size_wh)))
                points.append(interior_point(scene.shapes[index]))
    points_xy = torch.tensor(points)
    sizes = torch.tensor([scenes[image].size_wh for image, _, _ in at], dtype=torch.float32)
    return LocationBatch(
        scenes, batch, torch.tensor(at), torch.tensor(shapes), torch.tensor(boxes), points_xy / sizes, points_xy
    )
