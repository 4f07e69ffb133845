"""Adapters trained elsewhere: answers after loading and after merging, and errors for those that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora, merge_for_inference
from sam4mllm.testing import save_tiny_mllm

Weights = dict[str, torch.Tensor]

WEIGHTS = "adapter_model.safetensors"
ATTENTION = ["q_proj", "v_proj"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 12)[None]).logits


def change_tuned_weights(model: Any) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


def save_adapter(base: str, folder: Path, **lora: Any) -> Mllm:
    """Save an adapter of random weights on `base`, and return the model with it."""
    mllm = attach_lora(load_mllm(base), {"r": 4, "lora_alpha": 8, **lora}, 0)
    change_tuned_weights(mllm.model)
    mllm.model.eval().save_pretrained(folder)
    return mllm


def edit_config(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


LORA_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 32},
    },
    "some layers": {"target_modules": ATTENTION, "exclude_modules": None, "layers_to_transform": [1]},
    "biases": {"bias": "all"},
    "full projector": {"modules_to_save": ["multi_modal_projector"]},
    "full embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "adapted embeddings": {"target_modules": ["embed_tokens", "q_proj"], "exclude_modules": None},
    "new tokens": {"trainable_token_indices": [5, 6]},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("lora", LORA_SETTINGS.values(), ids=list(LORA_SETTINGS))
def test_an_adapter_answers_as_when_it_was_saved(fast_vlm: str, tmp_path: Path, lora: dict[str, Any]) -> None:
    saved = logits(save_adapter(fast_vlm, tmp_path, **lora).model)
    loaded = load_mllm(fast_vlm, tmp_path)
    torch.testing.assert_close(logits(loaded.model), saved)
    torch.testing.assert_close(logits(merge_for_inference(loaded).model), saved, atol=1e-4, rtol=1e-4)
    assert (saved - logits(load_mllm(fast_vlm).model)).abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=ATTENTION, feedforward_modules=[]),
        peft.LoHaConfig(target_modules=ATTENTION),
        peft.LoKrConfig(target_modules=ATTENTION),
        peft.OFTConfig(target_modules=ATTENTION),
        peft.VeraConfig(target_modules=ATTENTION),
        peft.AdaLoraConfig(target_modules=ATTENTION, total_step=10, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_kinds_of_adapters(fast_vlm: str, tmp_path: Path, config: Any) -> None:
    model = peft.get_peft_model(load_mllm(fast_vlm).model, config)
    change_tuned_weights(model)
    model.eval().save_pretrained(tmp_path)
    loaded = load_mllm(fast_vlm, tmp_path)
    torch.testing.assert_close(logits(loaded.model), logits(model))
    torch.testing.assert_close(logits(merge_for_inference(loaded).model), logits(model), atol=1e-4, rtol=1e-4)


def test_files_of_an_old_version_of_peft(fast_vlm: str, tmp_path: Path) -> None:
    """They have weights in torch's format, and settings that are unknown now but were off."""
    saved = save_adapter(fast_vlm, tmp_path, target_modules=ATTENTION, exclude_modules=r".*vision.*")
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    config = {
        "base_model_name_or_path": "owner/base",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": r".*language_model.*(q_proj|v_proj)",
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    torch.testing.assert_close(logits(load_mllm(fast_vlm, tmp_path).model), logits(saved.model))


ON = "base_model.model."


@pytest.mark.parametrize(
    ("family", "projector", "old_by_new"),
    [
        ("qwen2_vl", "visual.merger", {"model.language_model.": "model.", "model.visual.": "visual."}),
        (
            "llava",
            "multi_modal_projector",
            {"model.language_model.": "language_model.model.", "model.multi_modal_": "multi_modal_"},
        ),
    ],
)
def test_names_of_older_versions_of_transformers(
    tmp_path: Path, family: str, projector: str, old_by_new: dict[str, str]
) -> None:
    base = str(save_tiny_mllm(family, tmp_path / "base"))
    saved = save_adapter(base, tmp_path / "adapter", modules_to_save=[projector])
    changed = []

    def old_names(weights: Weights) -> Weights:
        renamed = {}
        for name, tensor in weights.items():
            new = next(new for new in old_by_new if name.startswith(ON + new))
            renamed[ON + old_by_new[new] + name.removeprefix(ON + new)] = tensor
            changed.append(new)
        return renamed

    edit_weights(tmp_path / "adapter", old_names)
    assert set(changed) == set(old_by_new)
    loaded = load_mllm(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.model), logits(saved.model))
    tensors = [
        {name: value for name, value in m.model.named_parameters() if projector in name} for m in (saved, loaded)
    ]
    torch.testing.assert_close(*tensors)


@pytest.fixture(scope="module")
def saved_adapter(fast_vlm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(fast_vlm, folder, modules_to_save=["multi_modal_projector"])
    return folder


@pytest.fixture
def adapter(saved_adapter: Path, tmp_path: Path) -> Path:
    """A copy of an adapter that fits `fast_vlm`; it has 28 tensors of LoRA and 4 of the projector."""
    return Path(shutil.copytree(saved_adapter, tmp_path / "adapter"))


def prefixed(weights: Weights) -> Weights:
    return {name.replace("language_model", "language_model.decoder"): tensor for name, tensor in weights.items()}


def halved(weights: Weights) -> Weights:
    return {name: weights[name] for name in sorted(weights)[::2]}


def without_lora_b(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if "lora_B" not in name}


def without_projector(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if "multi_modal_projector" not in name}


def with_other_shape(weights: Weights) -> Weights:
    return {
        name: torch.cat([tensor, tensor]) if "q_proj.lora_B" in name else tensor for name, tensor in weights.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed, r"28 of its 32 tensors have no module in it \(.*decoder.*\), and 28 tensors .* are missing"),
        (halved, r"WEIGHTS: does not fit the model 'fast_vlm': 16 tensors that its layers need are missing"),
        (without_lora_b, r"14 tensors that its layers need are missing \(.*lora_B"),
        (without_projector, r"4 tensors that its layers need are missing \(.*multi_modal_projector"),
        (with_other_shape, "size mismatch for .*q_proj.*; was it trained on another base"),
        (lambda weights: {}, "32 tensors that its layers need are missing"),
    ],
    ids=["other names", "half", "one matrix of each layer", "no projector", "another shape", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(
    fast_vlm: str, adapter: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    edit_weights(adapter, change)
    with pytest.raises(ModelError, match=message.replace("WEIGHTS", re.escape(str(adapter / WEIGHTS)))) as caught:
        load_mllm(fast_vlm, adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_names_the_base(fast_vlm: str, qwen2_vl: str, tmp_path: Path) -> None:
    save_adapter(qwen2_vl, tmp_path, target_modules=["q_proj"])
    edit_weights(tmp_path, lambda weights: {f"{name[:-1]}_": tensor for name, tensor in weights.items()})
    with pytest.raises(ModelError, match=re.escape(f"give the base that it was trained on ({qwen2_vl})")):
        load_mllm(fast_vlm, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "its peft_type is 'PROMPT_TUNING'; give an adapter of one of the types LORA"),
        ({"peft_type": None}, "its peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "trained for the task 'SEQ_CLS', which does not generate text"),
        ({"use_newer": True, "peft_version": "9.1"}, r"does not know use_newer: True .*\(the adapter's: 9\.1\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "random decomposition"),
        (
            {"target_modules": ["no_such_layer"]},
            "does not load on 'fast_vlm': No modules were targeted .*trained on another base",
        ),
        ({"r": 8}, "size mismatch for .*; was it trained on another base"),
        ({"r": "four"}, "does not load on 'fast_vlm'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    fast_vlm: str, adapter: Path, settings: dict[str, Any], message: str
) -> None:
    edit_config(adapter, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        load_mllm(fast_vlm, adapter)
    assert "\n" not in str(caught.value)


def test_a_setting_of_a_newer_peft_that_is_off_is_ignored(fast_vlm: str, adapter: Path) -> None:
    before = logits(load_mllm(fast_vlm, adapter).model)
    edit_config(adapter, use_newer=False, newer_config={})
    torch.testing.assert_close(logits(load_mllm(fast_vlm, adapter).model), before)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", b"{", "adapter_config.json: is no JSON"),
        ("adapter_config.json", b"[]", "its peft_type is None"),
        (
            WEIGHTS,
            None,
            r"has adapter_config.json, but the adapter's weights are missing \(adapter_model.safetensors or",
        ),
        (WEIGHTS, b"", "does not load on 'fast_vlm': Error while deserializing header.*damaged or cut short, copy it"),
        ("adapter_model.bin", b"not of torch", "does not load on 'fast_vlm'"),
    ],
)
def test_damaged_files_are_refused(
    fast_vlm: str, adapter: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is None or file.endswith(".bin"):
        (adapter / WEIGHTS).unlink()
    if content is not None:
        (adapter / file).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_mllm(fast_vlm, adapter)
    assert "\n" not in str(caught.value)


def test_an_initialization_that_cannot_be_repeated_is_no_setting_of_a_recipe(fast_vlm: str) -> None:
    with pytest.raises(RecipeError, match=r"lora\.init_lora_weights: 'pissa_niter_4' .* set 'pissa'"):
        attach_lora(load_mllm(fast_vlm), {"r": 4, "init_lora_weights": "pissa_niter_4"}, 0)
