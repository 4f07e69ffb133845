"""Training itself: the loss falls, a stopped run ends as an uninterrupted one, accumulation changes nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import RecipeError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.testing.tiny_qwen import save_qwen2_5_vl
from sam4mllm.train.arguments import training_arguments
from sam4mllm.train.trainer import fit
from sam4mllm.train.validation import Validation
from tests.train.conftest import adapter_of, largest_difference, make_conversations, make_recipe


class StopAt(TrainerCallback):
    """Breaks off as Ctrl-C would: after step `step`, before anything else is done for it; or as training ends."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        if self.step is None:
            raise KeyboardInterrupt


def scores(*ciou: float):
    """A validation that finds these cIoU in turn, the last one again and again."""
    left = list(ciou)
    return lambda: Validation(left.pop(0) if len(left) > 1 else left[0], 0.0, 4)


def trained(recipe, *, stop: StopAt | None = None, validate=None) -> RunFolder:
    run = RunFolder.create(recipe)
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, recipe.seed)
    fit(mllm, make_conversations(), recipe, run, validate=validate, callbacks=[stop] if stop else [])
    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fast_vlm) -> RunFolder:
    return trained(make_recipe(tmp_path_factory.mktemp("whole"), fast_vlm))


def test_the_loss_falls(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.max_steps=40", "training.save_steps=100", "lora.r=16")
    losses = [record["loss"] for record in trained(recipe).log.read()]
    assert len(losses) == 40
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])


# 3 steps make an epoch and every second is saved: 3 resumes amid the first epoch, 5 amid the second, 7 where one ends.
@pytest.mark.parametrize("step", [1, 3, 5, 7, 8, None])
def test_a_stopped_run_ends_as_an_uninterrupted_one(tmp_path, fast_vlm, uninterrupted, step):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, stop=StopAt(step))
    run = trained(recipe)
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6
    assert [record["step"] for record in run.log.read()] == list(range(1, 9))
    for record, expected in zip(run.log.read(), uninterrupted.log.read(), strict=True):
        assert record == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(tmp_path, fast_vlm, uninterrupted):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, stop=StopAt(5))
    (recipe.output / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    run = trained(recipe)
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6


def test_a_killed_process_leaves_what_a_resume_needs(tmp_path, fast_vlm, uninterrupted):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.train import test_fit
from tests.train.conftest import make_recipe
class Kill(test_fit.StopAt):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
test_fit.trained(make_recipe(Path({str(tmp_path)!r}), {fast_vlm!r}), stop=Kill(5))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = trained(make_recipe(tmp_path, fast_vlm))
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6


def test_accumulation_equals_a_larger_batch(tmp_path, fast_vlm):
    common = ("training.max_steps=3", "training.optim=sgd", "lora.lora_dropout=0", "training.learning_rate=0.5")
    adapters = []
    for batch, accumulation in ((6, 1), (1, 6), (2, 3)):
        folder = tmp_path / str(batch)
        folder.mkdir()
        sizes = (
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={accumulation}",
        )
        adapters.append(adapter_of(trained(make_recipe(folder, fast_vlm, *common, *sizes)).path))
    # lora_B starts at zero, so its values are what training did.
    moved = max(float(value.abs().max()) for name, value in adapters[0].items() if "lora_B" in name)
    assert moved > 1e-3
    assert largest_difference(adapters[0], adapters[1]) <= 1e-5 * max(1, moved)
    assert largest_difference(adapters[0], adapters[2]) <= 1e-5 * max(1, moved)


def test_the_best_adapter_is_kept(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.save_total_limit=10")
    run = trained(recipe, validate=scores(0.2, 0.6, 0.4, 0.6))
    assert {step: found["ciou"] for step, found in run.log.validations().items()} == {2: 0.2, 4: 0.6, 6: 0.4, 8: 0.6}
    step, ciou, folder = run.best()
    assert (step, ciou) == (4, 0.6)
    best, root = adapter_of(folder), adapter_of(run.path)
    assert largest_difference(best, root) == 0
    assert largest_difference(root, adapter_of(run.checkpoints / "checkpoint-4")) == 0
    assert largest_difference(root, adapter_of(run.checkpoints / "checkpoint-8")) > 0
    assert not list(run.checkpoints.glob("unfinished*"))


def test_validation_does_not_change_the_weights(tmp_path, fast_vlm, uninterrupted):
    run = trained(make_recipe(tmp_path, fast_vlm), validate=scores(0.1, 0.2, 0.3, 0.4))
    assert run.best()[0] == 8
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) == 0


def test_the_best_survives_a_stop_and_a_lost_one_is_found_again(tmp_path, fast_vlm):
    by_step = {2: 0.5, 4: 0.3, 6: 0.7, 8: 0.1}
    recipe = make_recipe(tmp_path, fast_vlm, "training.save_steps=4")

    def start(stop, steps):
        left = list(steps)
        return trained(recipe, stop=stop, validate=lambda: Validation(by_step[left.pop(0)], 0.0, 4))

    with pytest.raises(KeyboardInterrupt):
        start(StopAt(7), [2, 4, 6])
    assert RunFolder(recipe.output).best()[0] == 6
    run = start(None, [6, 8])
    assert run.best()[:2] == (6, 0.7)
    assert [record["step"] for record in run.log.read() if "validation" in record] == [2, 4, 6, 8]


def test_the_calibration_is_that_of_the_best_adapter_and_a_stopped_run_ends_in_the_same_bytes(tmp_path, fast_vlm):
    by_step = {2: 0.5, 4: 0.3, 6: 0.7, 8: 0.1}
    fitted = {
        step: fit_calibration([(Confidence(-0.1, None, ciou), ciou > 0.4)] * step, [], "val")
        for step, ciou in by_step.items()
    }

    def start(name, stop, *steps):
        left = list(steps)

        def validate():
            step = left.pop(0)
            return Validation(by_step[step], 0.0, 4, fitted[step])

        (tmp_path / name).mkdir(exist_ok=True)
        return trained(make_recipe(tmp_path / name, fast_vlm, "training.save_steps=4"), stop=stop, validate=validate)

    with pytest.raises(KeyboardInterrupt):
        start("stopped", StopAt(7), 2, 4, 6)
    assert RunFolder(tmp_path / "stopped/run").calibration is None
    runs = [start("stopped", None, 6, 8), start("whole", None, 2, 4, 6, 8)]
    assert runs[0].calibration == fitted[6] and runs[0].calibration is not None
    assert len({(run.path / "calibration.json").read_bytes() for run in runs}) == 1


def test_a_last_validation_is_made_where_the_steps_do_not_fall_on_one(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.validate.every_steps=0")
    run = trained(recipe, validate=scores(0.4))
    assert list(run.log.validations()) == [8]
    assert run.best()[0] == 8


def test_the_run_folder_loads_with_peft_alone(uninterrupted, fast_vlm):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(fast_vlm), uninterrupted.path)
    processor = AutoProcessor.from_pretrained(uninterrupted.path)
    assert "<im_start>" in processor.chat_template or "im_start" in processor.chat_template
    ours = load_mllm(fast_vlm, uninterrupted.path)
    for name, value in ours.model.state_dict().items():
        assert (model.state_dict()[name] == value).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.remove_unused_columns=true", "training.remove_unused_columns: conversations have no columns"),
        ("training.eval_strategy=steps", "training.eval_strategy: training is validated by generating"),
        ("training.lr_scheduler_type=nonsense", "transformers refuses these settings: .*nonsense"),
        ("training.fsdp=true", "training.fsdp: FSDP needs GPUs; leave it out"),
        ("training.eval_on_start=true", "training.eval_on_start: training is validated by generating"),
        ("training.train_sampling_strategy=group_by_length", "the seed decides the order of the data"),
        ("training.save_strategy=best", "training.save_strategy: the best adapter by validation is kept by itself"),
        ("training.report_to=comet_ml", "transformers refuses these settings: .*comet"),
    ],
)
def test_training_keys_that_cannot_be_used(tmp_path, fast_vlm, override, message):
    with pytest.raises(RecipeError, match=message):
        trained(make_recipe(tmp_path, fast_vlm, override))


def test_deepspeed_that_is_not_installed_is_named(tmp_path, fast_vlm, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"training.deepspeed: deepspeed is not installed; pip install 'sam4mllm\["):
        trained(make_recipe(tmp_path, fast_vlm, "training.deepspeed={zero_optimization: {stage: 2}}"))


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["model.quantization=4bit"], "model.quantization: bitsandbytes"),
        (["training.optim=paged_adamw_8bit"], "training.optim: bitsandbytes"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_before_any_work(tmp_path, fast_vlm, monkeypatch, overrides, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"{missing} is not installed; pip install 'sam4mllm\[quantization\]'"):
        training_arguments(make_recipe(tmp_path, fast_vlm, *overrides), "cpu")


def test_checkpointing_sends_no_gradient_through_the_eyes(tmp_path):
    seen = {"forward": 0, "backward": 0}

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            eyes = model.get_base_model().model.visual
            for layer in (module for module in eyes.modules() if isinstance(module, torch.nn.Linear)):
                seen["linear"] = seen.get("linear", 0) + 1
                layer.register_forward_hook(lambda *_: seen.update(forward=seen["forward"] + 1))
                layer.register_full_backward_pre_hook(lambda *_: seen.update(backward=seen["backward"] + 1))

    base = str(save_qwen2_5_vl(tmp_path / "base"))
    recipe = make_recipe(tmp_path, base, "training.gradient_checkpointing=true", "training.max_steps=1")
    trained(recipe, stop=Watch())
    assert seen["linear"] and seen == {"linear": seen["linear"], "forward": seen["linear"], "backward": 0}


def test_a_run_does_not_go_on_with_other_conversations(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, stop=StopAt(3))
    run, mllm = RunFolder.create(recipe), attach_lora(load_mllm(fast_vlm), recipe.lora, recipe.seed)
    with pytest.raises(RecipeError, match="were taught other conversations"):
        fit(mllm, make_conversations()[1:], recipe, run)


def test_gradient_checkpointing_changes_nothing(tmp_path, fast_vlm):
    adapters = []
    for on in ("true", "false"):
        folder = tmp_path / on
        folder.mkdir()
        recipe = make_recipe(
            folder, fast_vlm, f"training.gradient_checkpointing={on}", "lora.lora_dropout=0", "training.max_steps=2"
        )
        run = trained(recipe)
        adapters.append(adapter_of(run.path))
        assert json.loads((run.path / "versions.json").read_text())["transformers"]
    assert largest_difference(*adapters) <= 1e-6


def test_the_order_of_an_epoch_does_not_depend_on_workers(tmp_path, fast_vlm, uninterrupted):
    run = trained(make_recipe(tmp_path, fast_vlm, "training.dataloader_num_workers=1"))
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6
