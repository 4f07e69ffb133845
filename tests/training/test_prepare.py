"""Prepared targets: the figures of a store, as JSON and as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.mixture import Mixture
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import RecipeError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.targets.store import ObjectTarget, SkippedObject, TargetStore
from sam4mllm.training.prepare import PreparedTargets, prepare_targets, resolve_recipe
from tests.training.helpers import make_recipe

BOX = Box(0, 0, 10, 10)


def target(name: str, iou: float, box_iou: float, mean_iou: float) -> ObjectTarget:
    return ObjectTarget(name, f"hash of {name}", (SamPrompt(BOX),), (iou,), box_iou, mean_iou, 0.0)


def prepared(folder: Path, *results: ObjectTarget | SkippedObject, boxes: int = 0) -> PreparedTargets:
    store = TargetStore.open(folder, {"data": "test"})
    if results:
        store.write_shard(0, results)
    objects = [MaskObject("m", encode(np.ones((10, 10), dtype=bool)), BOX)]
    objects += [MaskObject(f"box {index}", None, BOX) for index in range(boxes)]
    samples = tuple(Sample(item.id, Path("a.png"), (10, 10), "it", (item,)) for item in objects)
    return PreparedTargets(store, Mixture((samples, samples), (), 0, (), {}))


def test_figures_are_those_of_the_store(tmp_path: Path) -> None:
    skipped = SkippedObject("c", "hash of c", "the mask is empty")
    results = (target("a", 0.75, 0.5, 0.5), target("b", 0.25, 0.5, 0.125), skipped)
    targets = prepared(tmp_path, *results, boxes=2)
    assert targets.to_json() == {
        "store": str(targets.store.path),
        "objects": 2,
        "skipped": 1,
        "shared": 0,
        "points_beat_box": 1,
        "boxes_alone": 2,
        "below_half": 1,
        "iou_chosen": 0.5,
        "iou_box_alone": 0.5,
        "iou_random_group": 0.3125,
    }
    assert targets.summary().splitlines()[1:] == [
        f"2 objects with a target, 1 without, in {targets.store.path}",
        "mean iou chosen 0.500, iou box alone 0.500, iou random group 0.312",
        "points beat the box for 1 of them (50%)",
        "2 objects have a box and no mask; their target is the box alone",
        "no prompt reaches IoU 0.5 for 1 objects (worst: 0.25, b); set targets.min_iou to drop them",
    ]


def test_ids_of_one_object_are_counted_as_shared(tmp_path: Path) -> None:
    one = target("a", 0.75, 0.5, 0.5)
    skipped = SkippedObject("b", "hash of b", "the mask is empty")
    also = [replace(one, object_id=name) for name in ("other/a", "third/a")]
    targets = prepared(tmp_path, one, *also, skipped, replace(skipped, object_id="other/b"))
    assert (targets.figures.objects, targets.figures.skipped, targets.to_json()["shared"]) == (3, 2, 3)
    assert targets.summary().splitlines()[1:3] == [
        f"3 objects with a target, 2 without, in {targets.store.path}",
        "3 of these have the image, mask and box of another one and are not scored again",
    ]


def test_an_empty_store_has_no_means(tmp_path: Path) -> None:
    targets = prepared(tmp_path)
    assert targets.to_json()["iou_chosen"] is None and targets.figures.worst is None
    assert targets.summary().splitlines()[1:] == [f"0 objects with a target, 0 without, in {targets.store.path}"]


def test_a_method_without_targets_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, "no-such-model", "method=pqpp")
    with pytest.raises(RecipeError, match=r"run: pqpp is trained without SAM's targets; nothing to prepare, run train"):
        prepare_targets(recipe)


def test_a_recipe_may_be_a_path_or_a_name(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, "no-such-model")
    assert resolve_recipe(tmp_path / "recipe.yaml") == resolve_recipe(recipe) == recipe
    assert resolve_recipe("shapes_ppg").output == Path("runs/demo")
