"""The pre-training of the embedded MLLM on location tokens: its exchanges, rows and batches, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import sam4mllm.models
from sam4mllm.mllm.location_weights import add_token
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.synthetic.scenes import make_scene
from tests.scripts import load_script

locations, rows, build = (load_script(name) for name in ("mllm_locations", "mllm_rows", "build_locations"))
SCENES = [make_scene(23, index, shared_boxes=0.5) for index in range(6)]


@pytest.fixture(scope="module")
def packer() -> Any:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(sam4mllm.models.path("mllm"))
    add_token(tokenizer)
    return locations.LocationPacker(tokenizer)


def test_answers_have_a_location_for_each_shape_and_regions_are_boxes_of_one_shape() -> None:
    kinds = set()
    for index, scene in enumerate(SCENES):
        alone = ~locations.shares_box(scene)
        found = locations.location_exchanges(scene, np.random.default_rng(index))
        for each in found:
            kinds.add(each.kind)
            if each.kind == "region":
                (shape,) = each.answer_shapes
                assert alone[shape] and each.question == f"What is at {LOCATION_TOKEN}?"
                assert each.answer == f"the {scene.shapes[shape].colour} {scene.shapes[shape].name}"
            else:
                assert each.answer.count(LOCATION_TOKEN) == len(each.answer_shapes) == len(each.answer_points)
                assert each.answer_shapes or each.answer == "No object found."
                for shape, (x, y) in zip(each.answer_shapes, each.answer_points, strict=True):
                    assert scene.shapes[shape].mask[int(y), int(x)]
        assert sum(each.kind == "region" for each in found) == alone.sum()
    assert kinds >= {"attribute", "plural", "nothing", "overlap", "list", "region"}


def test_a_batch_has_the_boxes_and_points_of_its_location_tokens(packer: Any) -> None:
    located = locations.make_batch(packer, 5, 10, 2)
    image, position, is_region = located.at.T
    assert (located.batch.ids[image, position] == packer.location).all()
    assert len(located.at) == (located.batch.ids == packer.location).sum() and 0 < is_region.sum() < len(is_region)
    for row, (box, point) in enumerate(zip(located.boxes.tolist(), located.points.tolist(), strict=True)):
        shape = located.scenes[int(image[row])].shapes[int(located.shapes[row])]
        width, height = located.scenes[int(image[row])].size_wh
        assert [box[0] * width, box[3] * height] == pytest.approx([shape.box.x1, shape.box.y2], abs=1e-3)
        assert shape.mask[int(point[1] * height), int(point[0] * width)]
    # In an answer the label of the token before a location token is the location token; a question has no labels.
    prefix = located.batch.layout[0]
    assert (located.batch.labels[image, position - 1 - prefix][is_region == 0] == packer.location).all()
    assert (located.batch.labels[image, position - 1 - prefix][is_region == 1] == -100).all()


def test_the_state_at_a_location_is_supervised_to_attend_to_its_shape(packer: Any) -> None:
    located = locations.make_batch(packer, 5, 10, 2, former=False)
    supervised, is_target = located.batch.attention_targets[rows.ANSWER_LAYER]
    prefix, count, length = located.batch.layout
    assert count <= 4
    for image, position, is_region in located.at.tolist():
        row, inside = divmod(position - prefix, length)
        at = (supervised[:, :3] == torch.tensor([image, row, inside])).all(-1)
        heads = set(supervised[at, 3].tolist())
        assert is_region or heads == {rows.REGION, rows.POINT}
        assert (is_target[at].sum(-1) >= 1).all()


def test_a_step_trains_the_adapter_alone_and_the_saved_adapter_gives_the_same_boxes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretraining = build.Pretraining()
    located = locations.make_batch(pretraining.packer, 5, 10, 1)
    loss, parts = pretraining.loss(located, 0.3)
    loss.backward()
    trained = {name for name, p in pretraining.mllm.model.named_parameters() if p.grad is not None}
    assert all(any(part in name for part in ("lora_", "location_heads", "trainable_tokens")) for name in trained)
    assert {part.split(".")[0] for part in parts} >= {"l1", "giou", "cycle_box", "cycle_state", "point", "mask"}
    figures = build.held_out(pretraining, 1)
    assert set(figures) >= {"box_iou", "ciou", "ciou_box", "captions"}

    build.save(pretraining.mllm, tmp_path)
    base = build.load_mllm(build.EMBEDDED, tmp_path, dtype="float32")
    boxes = torch.rand(3, 4)
    encoded = base.location_heads.encode_boxes(boxes)
    torch.testing.assert_close(encoded, pretraining.heads.encode_boxes(boxes))
    assert not (tmp_path / "README.md").exists() and (tmp_path / "config.json").is_file()
