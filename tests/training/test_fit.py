"""Training on conversations: the loss falls, and accumulation, checkpointing and workers do not change the adapter."""

import json

import torch
from transformers import TrainerCallback

from sam4mllm.mllm.loading import load_mllm
from sam4mllm.testing import save_tiny_mllm
from tests.training.helpers import adapter_of, largest_difference, make_recipe, run_fit


def test_the_loss_falls(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.max_steps=40", "training.save_steps=100", "lora.r=16")
    losses = [record["loss"] for record in run_fit(recipe).log.read()]
    assert len(losses) == 40
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])


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
        adapters.append(adapter_of(run_fit(make_recipe(folder, fast_vlm, *common, *sizes)).path))
    # lora_B is initialized to zero, so its values are the change by training.
    moved = max(float(value.abs().max()) for name, value in adapters[0].items() if "lora_B" in name)
    assert moved > 1e-3
    assert largest_difference(adapters[0], adapters[1]) <= 1e-5 * max(1, moved)
    assert largest_difference(adapters[0], adapters[2]) <= 1e-5 * max(1, moved)


def test_the_run_folder_loads_with_peft_alone(uninterrupted, fast_vlm):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(fast_vlm), uninterrupted.path)
    processor = AutoProcessor.from_pretrained(uninterrupted.path)
    assert "<im_start>" in processor.chat_template or "im_start" in processor.chat_template
    ours = load_mllm(fast_vlm, uninterrupted.path)
    for name, value in ours.model.state_dict().items():
        assert (model.state_dict()[name] == value).all()


def test_checkpointing_computes_no_gradients_in_the_vision_tower(tmp_path):
    seen = {"forward": 0, "backward": 0}

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            vision_tower = model.get_base_model().model.visual
            for layer in (module for module in vision_tower.modules() if isinstance(module, torch.nn.Linear)):
                seen["linear"] = seen.get("linear", 0) + 1
                layer.register_forward_hook(lambda *_: seen.update(forward=seen["forward"] + 1))
                layer.register_full_backward_pre_hook(lambda *_: seen.update(backward=seen["backward"] + 1))

    base = str(save_tiny_mllm("qwen2_5_vl", tmp_path / "base"))
    recipe = make_recipe(tmp_path, base, "training.gradient_checkpointing=true", "training.max_steps=1")
    run_fit(recipe, stop=Watch())
    # One step, and the loss after it.
    assert seen["linear"] and seen == {"linear": seen["linear"], "forward": 2 * seen["linear"], "backward": 0}


def test_gradient_checkpointing_does_not_change_the_adapter(tmp_path, fast_vlm):
    adapters = []
    for on in ("true", "false"):
        folder = tmp_path / on
        folder.mkdir()
        recipe = make_recipe(
            folder, fast_vlm, f"training.gradient_checkpointing={on}", "lora.lora_dropout=0", "training.max_steps=2"
        )
        run = run_fit(recipe)
        adapters.append(adapter_of(run.path))
        assert json.loads((run.path / "versions.json").read_text())["transformers"]
    assert largest_difference(*adapters) <= 1e-6


def test_the_order_of_an_epoch_does_not_depend_on_workers(tmp_path, fast_vlm, uninterrupted):
    run = run_fit(make_recipe(tmp_path, fast_vlm, "training.dataloader_num_workers=1"))
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) <= 1e-6
