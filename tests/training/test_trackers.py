"""Trackers get losses, validations and images, also of the last step; runs without a tracker report nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.pipeline.result import Result
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.trackers import TENSORBOARD_FOLDER, Trackers
from sam4mllm.training.validation import Validation, ValidationCase
from tests.data.tiny_datasets import write_image
from tests.training.helpers import adapter_of, largest_difference, make_recipe, run_fit


def validation_with_case(folder: Path) -> Validation:
    """A validation of one case, whose mask is a part of the annotation."""
    write_image(folder / "a.png", 40, 20)
    truth = np.zeros((20, 40), dtype=bool)
    truth[4:12, 6:26] = True
    sample = Sample("1", folder / "a.png", (40, 20), "the ring", (MaskObject("o", encode(truth), Box(6, 4, 26, 12)),))
    masks = torch.from_numpy(truth)[None] & (torch.arange(40) < 16)
    prompts = [SamPrompt(Box(6, 4, 16, 12), (Point(10.5, 8.5, 1),))]
    result = Result(masks, prompts, torch.tensor([0.5]), "ok", "answer")
    return Validation(0.5, 0.25, 4, None, 0.75, (ValidationCase(sample, result),))


def events_of(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Sizes of 0 keep all events.
    return accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()


def test_tensorboard_gets_losses_validations_and_images(
    tmp_path: Path, fast_vlm: str, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    # 8 steps, validated every 3 and at the end.
    settings = ("training.report_to=tensorboard", "training.validate.every_steps=3")
    recipe = make_recipe(tmp_path, fast_vlm, *settings)
    by_step = [0.25, 0.5, 0.75]
    left = by_step.copy()
    run = run_fit(recipe, validate=lambda: replace(validation_with_case(tmp_path), ciou=left.pop(0)))
    folder = run.path / TENSORBOARD_FOLDER
    assert len(list(folder.iterdir())) == 1 and not (tmp_path / "runs").exists()
    events = events_of(folder)
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    logged = [record["loss"] for record in run.log.read() if "loss" in record]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged)
    for name, values in (("ciou", by_step), ("malformed", [0.25] * 3), ("points_on", [0.75] * 3)):
        found = events.Scalars(f"eval/{name}")
        assert [event.step for event in found] == [3, 6, 8] and [event.value for event in found] == values
    images = events.Images("validation/0")
    assert [event.step for event in images] == [3, 6, 8] and images[0].width > 2 * 40
    # A tracker does not change what is trained.
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) == 0


def test_without_a_tracker_nothing_is_reported(uninterrupted: Any) -> None:
    assert not (uninterrupted.path / TENSORBOARD_FOLDER).exists()


def test_a_training_without_validation_closes_its_tracker(tmp_path: Path, fast_vlm: str) -> None:
    pytest.importorskip("tensorboard")
    recipe = make_recipe(tmp_path, fast_vlm, "training.report_to=tensorboard", "training.max_steps=2")
    run = run_fit(recipe)
    events = events_of(run.path / TENSORBOARD_FOLDER)
    assert "train/train_loss" in events.Tags()["scalars"] and not events.Tags()["images"]
    # A finished run that is started again trains nothing, and reports nothing.
    run_fit(recipe)
    assert len(list((run.path / TENSORBOARD_FOLDER).iterdir())) == 1
    assert json.loads((run.path / "versions.json").read_text())


@pytest.mark.parametrize(("callback", "package"), [("WandbCallback", "wandb"), ("TrackioCallback", "trackio")])
@pytest.mark.parametrize("is_main", [True, False])
def test_packages_that_take_images_get_them_from_the_main_process(
    callback: str, package: str, is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages are not installed here; transformers' callbacks call `log` of the package as this one does."""
    figures: list[Any] = []
    images: list[dict[str, Any]] = []
    methods = {
        "on_train_begin": lambda *_, **__: None,
        "on_log": lambda *_, logs, **__: figures.append(logs),
        "on_train_end": lambda *_, **__: figures.append("end"),
    }
    tracker = type(callback, (), methods)
    module = SimpleNamespace(Image=lambda image: image.size, log=images.append)
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [tracker])
    handler = SimpleNamespace(callbacks=[tracker()])
    state = SimpleNamespace(global_step=7, is_world_process_zero=is_main)
    trainer = SimpleNamespace(args=SimpleNamespace(report_to=[package]), state=state, control=None, model=None)
    trainer.callback_handler = handler

    trackers = Trackers(RunFolder(tmp_path / "run"))
    trackers.attach(trainer)
    validation = validation_with_case(tmp_path)
    trackers.report(validation)
    assert not figures and not images
    (attached,) = handler.callbacks
    attached.on_train_begin()
    trackers.report(validation)
    attached.on_train_end()
    trackers.close()
    assert figures == [{"eval_ciou": 0.5, "eval_malformed": 0.25, "eval_points_on": 0.75}, "end"]
    assert [sorted(each) for each in images] == ([["train/global_step", "validation/0"]] if is_main else [])
    if is_main:
        assert images[0]["train/global_step"] == 7 and images[0]["validation/0"][0] > 2 * 40
