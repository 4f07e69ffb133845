"""Estimates: steps as the trainer counts them, and memory compared with what torch saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from sam4mllm.mllm.families import family_of
from sam4mllm.mllm.loading import Mllm, Quantization
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.training.estimate import (
    ModelSize,
    memory,
    model_size,
    optimizer_state_bytes,
    optimizer_steps,
    training_flops,
)

SIZE = ModelSize(
    parameters=1000,
    weight_bytes=2000,
    trained=10,
    language_model=800,
    vision_tower=100,
    patch=588,
    layers=4,
    hidden=16,
    vocabulary=50,
    activation_bytes=300,
    autocast_bytes=20,
    dtype_bytes=2,
)


def test_memory_is_the_sum_of_its_parts() -> None:
    kept = memory(SIZE, 7, optimizer="adamw_torch", checkpointing=False, segmenter_bytes=None)
    assert kept.to_json() == {
        "weights": 2000,
        "adapter": 40,
        "gradients": 40,
        "optimizer_states": 80,
        "activations": 7 * 4 * 300 + 20,
        "logits": 7 * 50 * 14,
        "segmenter": None,
        "total": 2000 + 40 + 40 + 80 + 7 * 4 * 300 + 20 + 7 * 50 * 14,
    }
    again = memory(SIZE, 7, optimizer="adamw_bnb_8bit", checkpointing=True, segmenter_bytes=9)
    assert (again.optimizer_states, again.segmenter) == (20, 9)
    assert again.activations == 7 * (4 * 2 * 16 + 300) + 20


@pytest.mark.parametrize(
    ("optimizer", "size"), [("adamw_torch", 8), ("paged_adamw_8bit", 2), ("adamw_bnb_8bit", 2), ("sgd", 0)]
)
def test_optimizer_state_bytes(optimizer: str, size: int) -> None:
    assert optimizer_state_bytes(optimizer) == size


def test_flops_count_frozen_weights_twice_forward_and_twice_backward() -> None:
    assert training_flops(SIZE, 3, 5, checkpointing=False) == 3 * (4 * 800 + 6 * 10) + 2 * 5 * 100
    assert training_flops(SIZE, 3, 5, checkpointing=True) == 3 * (6 * 800 + 8 * 10) + 2 * 5 * 100


@pytest.mark.parametrize("count", [1, 7, 10])
@pytest.mark.parametrize(
    "chosen",
    [
        {"num_train_epochs": 3},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2},
        {"max_steps": 5, "per_device_train_batch_size": 4},
        {"num_train_epochs": 2, "per_device_train_batch_size": 1, "dataloader_drop_last": True},
    ],
)
def test_steps_are_those_of_the_trainer(count: int, chosen: dict[str, Any], tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **chosen)
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[{"x": 0}] * count)
    theirs = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())
    epoch, total = optimizer_steps(count, arguments)
    assert epoch == theirs[1] and total == theirs[-1]


@pytest.fixture(scope="module")
def models() -> dict[int, Mllm]:
    """Language models with real proportions, with 2 and 4 layers."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    models = {}
    for layers in (2, 4):
        text = {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "vocab_size": 500,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": None,
        }
        vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 256}
        config = Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": []})
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        models[layers] = Mllm(model, None, family_of("qwen3_vl"))
    return models


def counted(mllm: Mllm, quantization: Quantization | None = None, half: bool = True) -> ModelSize:
    size = model_size(mllm, quantization, half=half)
    assert size is not None
    return size


def saved_by_torch(mllm: Mllm, tokens: int, half: bool = True) -> int:
    """Bytes that autograd saves in one forward pass, without the weights."""
    model = mllm.model
    model.enable_input_require_grads()
    model.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.zeros((1, tokens), dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(size for size, _ in kept.values())


def lora_layers(mllm: Mllm) -> list[Any]:
    return [module for module in mllm.model.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("half", [True, False], ids=["autocast", "without autocast"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_activations_are_about_what_torch_saves(models: dict[int, Mllm], dropout: float, half: bool) -> None:
    lora = {"r": 16, "lora_alpha": 16, "lora_dropout": dropout}
    tuned = {layers: attach_lora(replace(mllm), lora, 0) for layers, mllm in models.items()}
    sizes = {layers: counted(mllm, half=half) for layers, mllm in tuned.items()}
    # The difference between the depths, without the copies of the adapter's weights, is what two layers save.
    tokens = 128
    really = saved_by_torch(tuned[4], tokens, half) - saved_by_torch(tuned[2], tokens, half)
    really -= sizes[4].autocast_bytes - sizes[2].autocast_bytes
    if dropout:
        # The mask of dropout has the inputs' dtype on a CPU, but one byte a value on a GPU.
        inputs = sum(module.in_features for module in lora_layers(tuned[2]))
        really -= tokens * inputs * ((2 if half else 4) - 1)
    for mllm in tuned.values():
        mllm.model.unload()
    assert 2 * tokens * sizes[4].activation_bytes == pytest.approx(really, rel=0.1)


def test_quantized_weights_are_counted_in_their_bytes(models: dict[int, Mllm]) -> None:
    tuned = attach_lora(models[2], {"r": 4}, 0)
    stored, four = counted(tuned).weight_bytes, counted(tuned, "4bit").weight_bytes
    with_vision = model_size(tuned, "4bit", half=True, quantize_vision=True)
    base = tuned.model.unload()
    linear = {name: m.weight.numel() for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    language = sum(count for name, count in linear.items() if name.startswith("model.language_model."))
    vision = sum(count for name, count in linear.items() if name.startswith("model.visual.blocks."))
    total = sum(parameter.numel() for parameter in base.parameters())
    assert stored == 2 * total and vision > 0 and with_vision is not None
    nf4 = 0.5 + 1 / 64 + 1 / 4096
    assert four == pytest.approx(4 * (total - language) + language * nf4)
    assert with_vision.weight_bytes == pytest.approx(4 * (total - language - vision) + (language + vision) * nf4)
