"""Losses and gradients that are not finite stop training; batches that do not fit are divided, the adapter is equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from sam4mllm.errors import DataError, DeviceMemoryError, TrainingError
from sam4mllm.prompts.conversation import training_conversation
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.checked_trainer import CheckedTrainer, last_finite_checkpoint
from tests.training.helpers import adapter_of, largest_difference, make_recipe, run_fit


class Patch(TrainerCallback):
    """Calls `on_begin(model)` before training and `on_step(model, step)` after each step."""

    def __init__(
        self, on_begin: Callable[[Any], object] | None = None, on_step: Callable[[Any, int], object] | None = None
    ) -> None:
        self.on_begin, self.on_step = on_begin, on_step

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.on_begin:
            self.on_begin(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.on_step:
            self.on_step(model, state.global_step)


def lora_parameter(model: Any) -> torch.nn.Parameter:
    return next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)


def test_a_loss_that_is_not_finite_stops_with_step_batch_and_last_good_checkpoint(tmp_path, fast_vlm) -> None:
    def spoil(model: Any, step: int) -> None:
        if step == 4:
            # Before the checkpoint of step 4 is saved, so that this one is not good either.
            lora_parameter(model).data.fill_(torch.nan)

    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(TrainingError) as raised:
        run_fit(recipe, stop=Patch(on_step=spoil))
    message = str(raised.value)
    assert message.startswith("step 5: the loss is nan, with the batch: image ndarray, 'Where is ")
    assert message.count("image ndarray, 'Where is ") == 2
    folder = tmp_path / "run/checkpoints"
    assert (folder / "checkpoint-4").is_dir()
    assert f"last good checkpoint: {folder / 'checkpoint-2'}. Check these samples" in message
    # Nothing is logged about the step, and the run can still be read.
    assert [record["step"] for record in RunFolder(recipe.output).log.read()] == [1, 2, 3, 4]
    assert not RunFolder(recipe.output).is_finished


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(tmp_path, fast_vlm) -> None:
    seen: list[Any] = []

    def spoil(model: Any, step: int) -> None:
        seen[:] = [model]
        if step == 3:
            lora_parameter(model).register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(
        TrainingError, match=r"^step 4: a gradient is not finite, with the batch: .*checkpoint-2\. Check"
    ):
        run_fit(make_recipe(tmp_path, fast_vlm, "training.gradient_accumulation_steps=2"), stop=Patch(on_step=spoil))
    assert all(torch.isfinite(parameter).all() for parameter in seen[0].parameters())


def test_a_learning_rate_that_is_far_too_high_is_an_error_before_any_checkpoint(tmp_path, fast_vlm) -> None:
    overrides = ("training.learning_rate=1e38", "training.warmup_steps=0", "training.save_steps=100")
    with pytest.raises(
        TrainingError, match=r"last good checkpoint: none was saved before\. .* lower training\.learning"
    ):
        run_fit(make_recipe(tmp_path, fast_vlm, *overrides))


def test_weights_that_the_last_step_made_useless_are_an_error_also_when_resumed(tmp_path, fast_vlm) -> None:
    """The weights are finite, their products are not; no later step computes a loss with them."""
    overrides = ("training.max_steps=1", "training.learning_rate=1e30", "training.warmup_steps=0")
    recipe = make_recipe(tmp_path, fast_vlm, *overrides, "training.save_steps=1")
    match = r"^step 1: the loss after the last step is nan, with the batch: image .*: none was saved before\. Check"
    for _ in range(2):
        with pytest.raises(TrainingError, match=match):
            run_fit(recipe)
        assert not RunFolder(recipe.output).is_finished
    assert last_finite_checkpoint(tmp_path / "run/checkpoints") == tmp_path / "run/checkpoints/checkpoint-1"


def test_damaged_checkpoints_are_not_good(tmp_path) -> None:
    assert last_finite_checkpoint(tmp_path) is None
    for name in ("checkpoint-3", "checkpoint-x", "best-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert last_finite_checkpoint(tmp_path) is None


def refuse_forward(rows: int) -> Callable[[Any], object]:
    """Memory runs out in the forward pass of more than `rows` conversations."""

    def check(module: Any, arguments: Any, inputs: Any) -> None:
        if len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    return lambda model: model.register_forward_pre_hook(check, with_kwargs=True)


def refuse_backward(rows: int, after: int) -> Callable[[Any], object]:
    """Memory runs out in the backward pass of more than `rows` conversations, from the `after`-th pass on."""
    passes: list[int] = []

    def begin(model: Any) -> None:
        model.register_forward_pre_hook(
            lambda _module, _arguments, inputs: passes.append(len(inputs["input_ids"])), with_kwargs=True
        )

        def check(gradient: torch.Tensor) -> None:
            if passes[-1] > rows and len(passes) > after:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        lora_parameter(model).register_hook(check)

    return begin


@pytest.mark.parametrize(
    ("batch", "accumulation", "patch", "parts"),
    [
        (2, 1, refuse_forward(1), (1, 2)),
        (2, 2, refuse_backward(1, after=1), (1, 4)),
        (4, 1, refuse_backward(2, after=0), (2, 2)),
    ],
)
def test_a_divided_batch_trains_the_adapter_of_smaller_batches_with_accumulation(
    tmp_path: Path, fast_vlm: str, caplog: pytest.LogCaptureFixture, batch, accumulation, patch, parts
) -> None:
    """Dropout is on, so the random states are compared as well."""

    def train(name: str, sizes: tuple[int, int], stop: TrainerCallback | None = None) -> RunFolder:
        (tmp_path / name).mkdir()
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        overrides = [f"training.{key}={size}" for key, size in zip(keys, sizes, strict=True)]
        return run_fit(make_recipe(tmp_path / name, fast_vlm, "training.max_steps=3", *overrides), stop=stop)

    divided = train("divided", (batch, accumulation), Patch(patch))
    (message,) = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert message.startswith(
        f"out of memory with {batch} conversations at once; {parts[0]} at once from now on, and each step still sees "
        f"{batch * accumulation}"
    )
    smaller = train("smaller", parts)
    assert largest_difference(adapter_of(divided.path), adapter_of(smaller.path)) <= 1e-5
    losses = [[record["loss"] for record in run.log.read()] for run in (divided, smaller)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_losses_that_a_model_averages_itself_are_weighted_by_their_tokens(tmp_path, fast_vlm, monkeypatch) -> None:
    adapters = []
    for name, patch in (("whole", None), ("divided", Patch(refuse_forward(1)))):
        (tmp_path / name).mkdir()
        original = CheckedTrainer.__init__

        def construct(self: Any, *args: Any, original: Any = original, **options: Any) -> None:
            original(self, *args, **options)
            self.model_accepts_loss_kwargs = False

        with monkeypatch.context() as patched:
            patched.setattr(CheckedTrainer, "__init__", construct)
            recipe = make_recipe(tmp_path / name, fast_vlm, "training.max_steps=3", "lora.lora_dropout=0")
            adapters.append(adapter_of(run_fit(recipe, stop=patch).path))
    assert largest_difference(*adapters) <= 1e-5


def test_too_little_memory_for_one_conversation_says_what_to_do(tmp_path, fast_vlm) -> None:
    match = r"step 1: out of memory with 1 conversation\(s\) at once \(image ndarray, .*gradient_checkpointing: true"
    with pytest.raises(DeviceMemoryError, match=match):
        run_fit(make_recipe(tmp_path, fast_vlm), stop=Patch(refuse_forward(0)))


def test_several_processes_are_told_the_sizes_with_which_the_run_resumes(tmp_path, fast_vlm, monkeypatch) -> None:
    original = CheckedTrainer._attempt

    def of_several(self: Any, *args: Any) -> Any:
        monkeypatch.setattr(self.accelerator.state, "distributed_type", DistributedType.MULTI_GPU)
        try:
            return original(self, *args)
        finally:
            self.accelerator.state.distributed_type = DistributedType.NO

    overrides = ("training.max_steps=3", "training.save_steps=1", "lora.lora_dropout=0")
    smaller = ("training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2")

    class AtStepTwo(Patch):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 1:
                refuse_forward(1)(model)

    with monkeypatch.context() as patched:
        patched.setattr(CheckedTrainer, "_attempt", of_several)
        match = r"step 2: .*with 2 conv.*per_device_train_batch_size: 1 and training.gradient_accumulation_steps: 2"
        with pytest.raises(DeviceMemoryError, match=match):
            run_fit(make_recipe(tmp_path, fast_vlm, *overrides), stop=AtStepTwo())
    resumed = run_fit(make_recipe(tmp_path, fast_vlm, *overrides, *smaller), stop=AtStepTwo())
    (tmp_path / "whole").mkdir()
    whole = run_fit(make_recipe(tmp_path / "whole", fast_vlm, *overrides))
    assert largest_difference(adapter_of(resumed.path), adapter_of(whole.path)) <= 1e-5


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_data_loaders_worker_is_raised_with_its_own_message(tmp_path, fast_vlm, workers):
    missing = training_conversation(tmp_path / "none.jpg", [("Where?", "[1,2,3,4]")])
    recipe = make_recipe(tmp_path, fast_vlm, f"training.dataloader_num_workers={workers}")
    with pytest.raises(DataError, match=r"none\.jpg: no such file") as caught:
        run_fit(recipe, conversations=[missing])
    assert "\n" not in str(caught.value)
