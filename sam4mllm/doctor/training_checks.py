"""Checks of a family's training: the loss, LoRA, the projector, checkpointing, quantization, loading and merging."""

from __future__ import annotations

import math
from typing import Any

from sam4mllm.doctor.family_under_test import FamilyUnderTest
from sam4mllm.doctor.result import expect, require_package
from sam4mllm.mllm.loading import Mllm, Quantization, load_mllm
from sam4mllm.mllm.lora import adapted_modules, attach_lora
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import isolated_conversation
from sam4mllm.training.collator import Collator
from sam4mllm.training.isolation import isolate_branches
from sam4mllm.utils.hub import ADAPTER_WEIGHTS

_TOLERANCE = 1e-4


def loss_falls(family: FamilyUnderTest) -> None:
    """Check that after ten steps the loss is below three quarters of the first."""
    _expect_falling(family.trained.losses)


def lora_in_language_model_only(family: FamilyUnderTest) -> None:
    """Check that LoRA adapts linear layers of the language model only, and others only with another exclusion."""
    mllm = attach_lora(family.load(), {"r": 2}, 0)
    outside = _adapted_outside(mllm)
    expect(len(adapted_modules(mllm)) >= 2, "no layer is adapted")
    expect(not outside, f"{len(outside)} layers outside the language model are adapted, such as {outside[:1]}")
    trained = [name for name, p in mllm.model.named_parameters() if p.requires_grad and "lora_" not in name]
    expect(not trained, f"{len(trained)} weights of the base are trained, such as {trained[:1]}")
    settings = {"r": 2, "target_modules": "all-linear", "exclude_modules": ["lm_head"]}
    # FastVLM's vision tower has convolutions only, which peft's all-linear leaves out; its projector is linear.
    wider = _adapted_outside(attach_lora(family.load(), settings, 0))
    expect(bool(wider), "lora.exclude_modules cannot extend LoRA beyond the language model")


def loads_with_peft(family: FamilyUnderTest) -> None:
    """Check that peft and transformers alone load the run folder, and that it has the logits of the trained model."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(str(family.base)).to(family.device)
    model = PeftModel.from_pretrained(base, str(family.trained.run.path)).eval()
    trained = family.logits(family.trained.mllm.model)
    _expect_equal(family.logits(model), trained, "logits of the trained model and the loaded one")
    change = _largest_difference(trained, family.logits(family.mllm.model))
    expect(change > 10 * _TOLERANCE, f"training changed the logits by only {change:.1e}")


def merges(family: FamilyUnderTest) -> None:
    """Check that the base with the adapter merged into it has the logits of base and adapter."""
    tuned = load_mllm(str(family.base), family.trained.run.path, device=family.device)
    before = family.logits(tuned.model)
    _expect_equal(family.logits(tuned.model.merge_and_unload()), before, "logits before and after merging")


def projector_fully_fine_tuned(family: FamilyUnderTest) -> None:
    """Check that `model.tune_projector` trains the projector, and that the adapter saves, loads and merges it."""
    from safetensors.torch import load_file

    training = family.train("projector", 2, tune_projector=True)
    names = [name for name in load_file(training.run.path / ADAPTER_WEIGHTS) if "lora_" not in name]
    projector = family.mllm.family.projector
    expect(bool(names), "the adapter's file has no projector")
    expect(all(any(part in name for part in projector) for name in names), f"the adapter's file has {names}")
    tuned = load_mllm(str(family.base), training.run.path, device=family.device)
    base = dict(family.mllm.model.named_parameters())
    merged = load_mllm(str(family.base), training.run.path, device=family.device).model.merge_and_unload()
    unchanged = [
        name
        for name, p in merged.named_parameters()
        if any(f".{part}." in f".{name}" for part in projector) and p.equal(base[name])
    ]
    expect(not unchanged, f"training did not change {unchanged[:1]} of the projector")
    trained = family.logits(training.mllm.model)
    _expect_equal(family.logits(tuned.model), trained, "logits of the trained model and the loaded one")
    _expect_equal(family.logits(merged), trained, "logits before and after merging")


def isolated_phrases(family: FamilyUnderTest) -> None:
    """Check that phrases which share an image in one sequence have the loss and gradients of separate conversations."""
    mllm = attach_lora(family.load(), {"r": 2}, 0)
    shared = [
        isolated_conversation(each.image, [[(f"Where is {n}?", f"[{n}7,2{n},45,6]")] for n in range(index + 1)])
        for index, each in enumerate(family.conversations)
    ]
    collator = Collator(mllm)
    separate = _loss_and_gradients(mllm.model, collator([branch for each in shared for branch in each.branches]))
    isolate_branches(mllm.model)
    isolated = _loss_and_gradients(mllm.model, collator(shared))
    for what, a, b in zip(("losses", "gradients"), isolated, separate, strict=True):
        _expect_equal(a, b, f"{what} of isolated phrases and of separate conversations")


def gradient_checkpointing(family: FamilyUnderTest) -> None:
    """Check that the losses with gradient checkpointing equal those without."""
    losses = family.train("checkpointed", 3, gradient_checkpointing=True).losses
    expected = family.trained.losses[:3]
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    expect(difference < 1e-3, f"the losses are {losses}, and without checkpointing {expected}")


def optimizer_8bit(family: FamilyUnderTest) -> None:
    """Check that `training.optim: adamw_bnb_8bit` keeps its states in 8 bits, and that the loss falls."""
    require_package("bitsandbytes", "quantization")
    # bitsandbytes keeps the states of tensors with fewer than 4096 values in 32 bits.
    training = family.train("optimizer", 6, optim="adamw_bnb_8bit", lora={"r": 64, "lora_alpha": 64})
    states = training.optimizer.state.values()
    dtypes = {str(value.dtype) for state in states for value in state.values() if hasattr(value, "dtype")}
    expect("torch.uint8" in dtypes, f"the optimizer states are {sorted(dtypes)}")
    _expect_falling(training.losses)


def nf4(family: FamilyUnderTest) -> None:
    """Check that the model quantized to 4 bits trains and generates, and that its language model alone is quantized."""
    _check_quantized(family, "4bit", "Linear4bit")


def int8(family: FamilyUnderTest) -> None:
    """Check that the model quantized to 8 bits trains and generates, and that its language model alone is quantized."""
    _check_quantized(family, "8bit", "Linear8bitLt")


def _check_quantized(family: FamilyUnderTest, quantization: Quantization, layer_class: str) -> None:
    require_package("bitsandbytes", "quantization")
    training = family.train(quantization, 3, quantization=quantization)
    base = training.mllm.model.get_base_model()
    inside = {id(module) for module in base.get_decoder().modules()}
    quantized = {name: module for name, module in base.named_modules() if type(module).__name__ == layer_class}
    outside = [name for name, module in quantized.items() if id(module) not in inside]
    expect(bool(quantized), f"no layer is a {layer_class}")
    expect(not outside, f"{len(outside)} layers outside the language model are quantized, such as {outside[:1]}")
    expect(all(map(math.isfinite, training.losses)), f"the losses are {training.losses}")
    TransformersEngine(training.mllm, 2).generate(family.questions[:2], 2)


def _loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Return the loss on a batch, and all gradients of the trained parameters as one vector."""
    import torch

    model.zero_grad()
    loss = model(**{name: value.to(model.device) for name, value in batch.items()}).loss
    loss.backward()
    gradients = [parameter.grad.flatten().float() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


def _adapted_outside(mllm: Mllm) -> list[str]:
    """Return the adapted modules outside of what transformers calls the model's decoder."""
    decoder = {id(module) for module in mllm.model.get_base_model().get_decoder().modules()}
    modules = dict(mllm.model.named_modules())
    return [name for name in adapted_modules(mllm) if id(modules[name]) not in decoder]


def _expect_falling(losses: list[float]) -> None:
    expect(all(map(math.isfinite, losses)), f"the losses are {losses}")
    first, last = losses[0], min(losses[-2:])
    expect(last < 0.75 * first, f"the loss goes from {first:.2f} to {last:.2f} in {len(losses)} steps")


def _expect_equal(a: Any, b: Any, what: str) -> None:
    difference = _largest_difference(a, b)
    expect(difference < _TOLERANCE, f"{what} differ by {difference:.1e}")


def _largest_difference(a: Any, b: Any) -> float:
    return float((a - b).abs().max())
