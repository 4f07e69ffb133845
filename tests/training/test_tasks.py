"""A mixture of several tasks goes through the stages of training: dry run, inspect and train."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.testing import save_tiny_sam
from sam4mllm.training.dry_run import dry_run
from sam4mllm.training.inspect import inspect_targets
from sam4mllm.training.trainer import train
from tests.data.tiny_datasets import write_tasks

RECIPE = """
output: {home}/run
model: {{base: {base}}}
segmenter: {{checkpoint: {home}/sam.pth}}
data:
  train:
    - {{dataset: refcocog, root: {home}, split: train, split_by: google}}
    - {{dataset: refcocog, root: {home}, split: train, split_by: google, task: region-caption}}
    - {{dataset: flickr30k, root: {home}, split: train}}
    - {{dataset: visual-genome, path: {home}/vg/region_descriptions.json, count: 4}}
    - {{dataset: pope, path: {home}/pope.json, images: {home}/vg/VG_100K}}
  validation: {{dataset: refcocog, root: {home}, split: val, split_by: google}}
method: {{name: {method}, phrases: 3}}
targets: {{groups: 2, store: {home}/targets}}
lora: {{r: 4}}
training:
  max_steps: 1
  per_device_train_batch_size: 8
  validate: {{every_steps: 0, samples: 1, batch_size: 1}}
generation: {{max_new_tokens: 4}}
"""
COUNTS = "2 phrases, 6 regions, 2 grounded captions and 1 chats"


def recipe_of(home: Path, base: str, method: str) -> Recipe:
    write_tasks(home)
    question = {"question_id": 1, "image": "1.jpg", "text": "Is there a cup?", "label": "no"}
    (home / "pope.json").write_text(json.dumps(question))
    save_tiny_sam(home / "sam.pth")
    (home / "recipe.yaml").write_text(RECIPE.format(home=home, base=base, method=method))
    return load_recipe(home / "recipe.yaml")


@pytest.mark.parametrize(
    ("method", "region", "marked"),
    [
        ("ppg", "[100,100,400,500]", "A man [050,100,300,800] by a wall ."),
        ("pqpp", "[100,100,400,500]", "A man [050,100,300,800] by a wall ."),
        ("pix2emb", "<location>", "A man<location> by a wall ."),
    ],
)
def test_every_task_is_counted_and_shown_in_the_form_of_the_method(
    tmp_path: Path, fast_vlm: str, method: str, region: str, marked: str
) -> None:
    report = dry_run(recipe_of(tmp_path, fast_vlm, method))
    assert [(each["set"].partition(f" {tmp_path}")[0], each["sampled"]) for each in report.sets] == [
        ("refcocog train", 2),
        ("refcocog train (region-caption)", 2),
        ("flickr30k train", 2),
        ("visual-genome", 4),
        ("pope", 1),
    ]
    assert COUNTS in report.summary()
    # One conversation of each data set is shown, of the set's task.
    of_sets = [str(each) for each in report.shown]
    assert ["What is at" in each for each in of_sets] == [False, True, False, True, False]
    shown = "\n".join(map(str, report.shown))
    assert f"What is at {region}?" in shown and marked in shown and "Is there a cup?" in shown
    assert any("flickr30k train: 1 items are left out" in note for note in report.notes)


def test_every_task_is_inspected_and_trained_on(
    tmp_path: Path, fast_vlm: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(tmp_path, fast_vlm, "pix2emb")
    assert inspect_targets(recipe, device="cpu").is_file()
    with caplog.at_level(logging.INFO):
        assert train(recipe, device="cpu").is_finished_for(recipe)
    assert any(message.startswith(f"{COUNTS} in ") for message in caplog.messages)
