"""An interrupted training ends with the adapter of an uninterrupted one."""

import math
from typing import Any

import pytest
from transformers import TrainerCallback

from sam4mllm.errors import RecipeError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.trainer import fit
from tests.training.helpers import (
    StopAt,
    adapter_of,
    largest_difference,
    make_conversations,
    make_recipe,
    run_fit,
    run_killed,
)


class LearningRates(TrainerCallback):
    """Records the learning rate of the optimizer before each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


# 3 steps make an epoch and every second is saved: 3 resumes in the first epoch, 5 in the second, 7 at the end of one.
@pytest.mark.parametrize("step", [1, 3, 5, 7, 8, None])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, fast_vlm, uninterrupted, step):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(step))
    run = run_fit(recipe)
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6
    assert [record["step"] for record in run.log.read()] == list(range(1, 9))
    for record, expected in zip(run.log.read(), uninterrupted.log.read(), strict=True):
        assert record == pytest.approx(expected, rel=1e-5)


def test_an_incomplete_checkpoint_is_not_resumed_from(tmp_path, fast_vlm, uninterrupted):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(5))
    (recipe.output / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    run = run_fit(recipe)
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6


def test_a_killed_process_is_resumed(tmp_path, fast_vlm, uninterrupted):
    run_killed(f"run_fit(make_recipe(Path({str(tmp_path)!r}), {fast_vlm!r}), stop=KillAt(5))")
    run = run_fit(make_recipe(tmp_path, fast_vlm))
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6


def test_a_finished_run_is_trained_for_more_steps(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.max_steps=4")
    first, resumed = LearningRates(), LearningRates()
    four = adapter_of(run_fit(recipe, stop=first).path)
    run = run_fit(make_recipe(tmp_path, fast_vlm, "training.max_steps=6"), stop=resumed)
    assert run.is_finished and [record["step"] for record in run.log.read()] == list(range(1, 7))
    assert largest_difference(adapter_of(run.path), four) > 1e-4
    # A cosine after two steps of warm-up: all steps have the rate of the schedule of their training's length.
    assert first.rates == pytest.approx([0, 5e-3, 1e-2, 5e-3])
    assert resumed.rates == pytest.approx([5e-3, 1e-2 * (1 - math.sqrt(0.5)) / 2])


def test_a_run_is_not_resumed_with_other_conversations(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(3))
    run, mllm = RunFolder.create(recipe), attach_lora(load_mllm(fast_vlm), recipe.lora, recipe.seed)
    with pytest.raises(RecipeError, match="were trained on other conversations"):
        fit(mllm, make_conversations(7), recipe, run)


def test_a_run_is_resumed_without_removed_records(tmp_path, fast_vlm, caplog):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(3))
    run, mllm = RunFolder.create(recipe), attach_lora(load_mllm(fast_vlm), recipe.lora, recipe.seed)
    conversations = make_conversations()
    # The last phrase of the last image, and all of the first image.
    kept = [*conversations[1:-1], Conversation(conversations[-1].image, conversations[-1].turns[:-2])]
    fit(mllm, kept, recipe, run)
    assert run.is_finished and [record["step"] for record in run.log.read()] == list(range(1, 9))
    assert "2 of 12 answers are no longer in the training data; training resumes without them" in caplog.text
