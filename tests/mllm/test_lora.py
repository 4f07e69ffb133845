"""Adapters: training under autocast; merging for inference, after which logits and answers are those of the adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.errors import ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm, Quantization, load_mllm
from sam4mllm.mllm.lora import adapted_modules, attach_lora, has_adapter, is_quantized, merge_for_inference
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.testing import save_tiny_mllm

TOLERANCE = 1e-4
EMBEDDINGS = ["embed_tokens", "lm_head"]


def save_adapter(base: str, folder: Path, *, tune_projector: bool = False, **lora: Any) -> Path:
    """Save an adapter with random weights in place of the initial ones, with which it has no effect."""
    tuned = attach_lora(load_mllm(base), {"r": 4, "lora_alpha": 16, **lora}, seed=0, tune_projector=tune_projector)
    generator = torch.Generator().manual_seed(1)
    for name, weight in tuned.model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    tuned.model.save_pretrained(folder)
    return folder


def questions() -> list[Conversation]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (90, 61))]
    return [inference_conversation(image, "Where is it" + "?" * index) for index, image in enumerate(images)]


def logits(mllm: Mllm) -> torch.Tensor:
    asked = [messages_with_image(conversation) for conversation in questions()]
    inputs = model_inputs(mllm.processor, asked, padding_side="left", add_generation_prompt=True)
    with torch.no_grad():
        return mllm.model(**inputs.to(mllm.device, mllm.dtype)).logits[:, -1].float()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("fast_vlm", {}),
        ("fast_vlm", {"tune_projector": True}),
        ("qwen2_vl", {"use_rslora": True}),
        ("qwen2_5_vl", {"use_dora": True}),
        ("qwen3_vl", {"rank_pattern": {"q_proj": 2, "v_proj": 7}, "alpha_pattern": {"o_proj": 3}}),
        ("internvl", {"tune_projector": True, "use_dora": True}),
        ("llava_onevision", {"modules_to_save": ["lm_head"]}),
        ("idefics3", {"target_modules": r".*(text_model|language_model).*q_proj"}),
        ("gemma3", {}),
        # Gemma 3 ties the embeddings, so merging into one layer must not change the other.
        ("gemma3", {"target_modules": ["q_proj", "lm_head"], "exclude_modules": None}),
        ("gemma3", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gemma3", {"target_modules": ["q_proj", *EMBEDDINGS], "exclude_modules": None}),
        ("gemma3", {"modules_to_save": EMBEDDINGS}),
    ],
)
def test_the_merged_model_has_the_logits_and_answers_of_base_and_adapter(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = str(save_tiny_mllm(family, tmp_path / "base", seed=1))
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    tuned, merged = load_mllm(base, adapter), merge_for_inference(load_mllm(base, adapter))
    assert merged.adapter_merged and not has_adapter(merged) and not adapted_modules(merged)
    assert merged.dtype == tuned.dtype and not merged.model.training
    expected = logits(tuned)
    assert (logits(merged) - expected).abs().max() < TOLERANCE
    assert (logits(load_mllm(base)) - expected).abs().max() > 100 * TOLERANCE
    before, after = (TransformersEngine(each, 2).generate(questions(), 12) for each in (tuned, merged))
    assert [reply.text for reply in after] == [reply.text for reply in before]


def test_gemma3_ties_its_embeddings(tmp_path: Path) -> None:
    model = load_mllm(str(save_tiny_mllm("gemma3", tmp_path / "base", seed=1))).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_half_weights_are_the_float32_sum_rounded_once(fast_vlm: str, tmp_path: Path) -> None:
    adapter = save_adapter(fast_vlm, tmp_path / "adapter")
    tuned = load_mllm(fast_vlm, adapter, dtype="bfloat16")
    names = [name.removeprefix("base_model.model.") for name in adapted_modules(tuned)]
    layers = {name: tuned.model.get_base_model().get_submodule(name) for name in names}
    sums = {name: layer.weight.float() + layer.get_delta_weight("default") for name, layer in layers.items()}
    assert all(layer.get_delta_weight("default").dtype == torch.float32 for layer in layers.values())
    merged = merge_for_inference(tuned)
    assert merged.dtype == torch.bfloat16 and len(sums) == 14
    for name, expected in sums.items():
        assert torch.equal(merged.model.get_submodule(name).weight, expected.bfloat16())


def test_the_user_decides_and_a_model_without_adapter_is_unchanged(fast_vlm: str, tmp_path: Path) -> None:
    tuned = load_mllm(fast_vlm, save_adapter(fast_vlm, tmp_path / "adapter"))
    assert merge_for_inference(tuned, False) is tuned and has_adapter(tuned)
    assert merge_for_inference(tuned, True).adapter_merged
    base = load_mllm(fast_vlm)
    assert all(merge_for_inference(base, choice) is base for choice in (None, True, False))


def test_a_model_without_adapter_needs_no_peft(fast_vlm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = load_mllm(fast_vlm)
    # An import of it would raise an ImportError.
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert not has_adapter(mllm) and merge_for_inference(mllm, None) is mllm


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_weights_are_not_merged(fast_vlm: str, tmp_path: Path, quantization: Quantization) -> None:
    pytest.importorskip("bitsandbytes")
    tuned = load_mllm(fast_vlm, save_adapter(fast_vlm, tmp_path / "adapter"), quantization=quantization)
    assert is_quantized(tuned) and not is_quantized(load_mllm(fast_vlm))
    before = {name: weight.clone() for name, weight in tuned.model.named_parameters()}
    assert merge_for_inference(tuned) is tuned and has_adapter(tuned) and not tuned.adapter_merged
    with pytest.raises(ModelError, match="merge_adapter: the base model is quantized"):
        merge_for_inference(tuned, True)
    assert all(torch.equal(weight, before[name]) for name, weight in tuned.model.named_parameters())
    # A checkpoint that was saved quantized is loaded without the recipe's setting.
    assert merge_for_inference(Mllm(tuned.model, tuned.processor, tuned.family)).model is tuned.model


def test_an_adapter_that_peft_cannot_merge_is_refused_with_the_option_that_keeps_it(
    fast_vlm: str, tmp_path: Path
) -> None:
    adapter = save_adapter(fast_vlm, tmp_path / "adapter", alora_invocation_tokens=[1, 2])
    with pytest.raises(ModelError, match=r"aLoRA does not support merging; .* --no-merge-adapter"):
        merge_for_inference(load_mllm(fast_vlm, adapter))


@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.5}, {"use_dora": True}])
def test_under_autocast_adapters_compute_in_half_precision_and_elsewhere_in_float32(
    lora: dict[str, Any], fast_vlm: str
) -> None:
    tuned = attach_lora(load_mllm(fast_vlm, dtype="bfloat16"), {"r": 4, **lora}, seed=0)
    layer = next(module for name, module in tuned.model.named_modules() if name in adapted_modules(tuned))
    seen: list[torch.dtype] = []
    layer.lora_A["default"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    inputs = torch.ones(3, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(inputs)
    output.float().sum().backward()
    assert layer(inputs).dtype == output.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == layer.lora_B["default"].weight.grad.dtype == torch.float32
    assert inputs.grad is not None and inputs.grad.isfinite().all()
    assert seen[-1] == torch.float32
    # DoRA computes with its input outside of matrix products, so peft converts it.
    assert lora.get("use_dora") or seen[0] == torch.bfloat16
