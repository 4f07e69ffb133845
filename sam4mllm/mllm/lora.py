"""LoRA adapters on a loaded model: attach a new one by the recipe's `lora` section, or merge one for inference."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.mllm.adapters import RANDOM_CHANGE_OF_BASE, first_line
from sam4mllm.mllm.decoder import outside_pattern
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.locations import LocationSettings, add_locations, location_adapter_settings


def attach_lora(
    mllm: Mllm,
    lora: Mapping[str, Any],
    seed: int,
    *,
    tune_projector: bool = False,
    locations: LocationSettings | None = None,
) -> Mllm:
    """Return the model with a new, trainable adapter; all other weights are frozen.

    `lora` holds the keys of `peft.LoraConfig`; `target_modules` and `exclude_modules` default to the linear layers of
    the model's decoder. With `tune_projector` the modules between vision tower and language model are fully fine-tuned,
    too, as `modules_to_save`. With `locations` so are location heads, and of the embedding matrices the rows of the
    location token, all in float32; the model gets those that it lacks. The adapter's initial values depend on `seed`
    alone.

    Raises:
        RecipeError: The settings are refused by peft or match no layer, the family's projector is unknown, or layers
            of which `locations` trains a row are trained otherwise.
        ModelError: The model's class does not separate its decoder, and `lora` has no `exclude_modules`; or as in
            `add_locations`.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    if locations is not None:
        add_locations(mllm, locations, seed)
    settings = _lora_settings(mllm, lora, tune_projector=tune_projector, with_locations=locations is not None)
    base = mllm.model
    if mllm.quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    set_seed(seed)
    try:
        model = get_peft_model(base, LoraConfig(**settings))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"lora: peft refuses these settings: {first_line(error)}") from error
    if locations is not None:
        from sam4mllm.mllm.token_rows import insert_rows

        insert_rows(model)
    _freeze_running_statistics(model)
    _tune_in_float32(model)
    _leave_casts_to_autocast(model)
    return replace(mllm, model=model)


def _lora_settings(
    mllm: Mllm, lora: Mapping[str, Any], *, tune_projector: bool, with_locations: bool
) -> dict[str, Any]:
    """Return all settings of `peft.LoraConfig`: those of the recipe, the family's, and those of `attach_lora`."""
    settings = {
        "task_type": "CAUSAL_LM",
        "target_modules": mllm.family.lora_targets,
        **({} if "exclude_modules" in lora else {"exclude_modules": _outside_decoder(mllm)}),
        **lora,
    }
    if str(lora.get("init_lora_weights")).startswith(RANDOM_CHANGE_OF_BASE):
        raise RecipeError(
            f"lora.init_lora_weights: {lora['init_lora_weights']!r} changes the base's weights by a random "
            "decomposition, so the saved adapter could not be loaded; set 'pissa'"
        )
    saved = list(lora.get("modules_to_save") or [])
    if tune_projector:
        if not mllm.family.projector:
            raise RecipeError(
                f"model.tune_projector: no projector is known for {mllm.family.model_type!r}; name its modules in "
                "lora.modules_to_save"
            )
        saved += mllm.family.projector
    if with_locations:
        of_locations = location_adapter_settings(mllm)
        _check_rows_free(lora, of_locations["trainable_token_indices"])
        settings["trainable_token_indices"] = of_locations["trainable_token_indices"]
        saved += of_locations["modules_to_save"]
    return {**settings, "modules_to_save": saved} if saved else settings


def _check_rows_free(lora: Mapping[str, Any], layers: Iterable[str]) -> None:
    """Check that the recipe trains no other part of the layers of which the location token's row is trained.

    Raises:
        RecipeError: It does.
    """
    if lora.get("trainable_token_indices"):
        raise RecipeError("lora.trainable_token_indices: the method trains the row of its location token; remove it")
    for key in ("modules_to_save", "target_modules"):
        names = lora.get(key) or []
        for layer in layers if not isinstance(names, str) else ():
            if name := next((name for name in names if f".{layer}".endswith(f".{name}")), None):
                raise RecipeError(
                    f"lora.{key}: the method trains one row of {name!r}, for its location token, and cannot train the "
                    f"layer otherwise; remove {name!r}"
                )


def _outside_decoder(mllm: Mllm) -> str:
    try:
        return outside_pattern(mllm.model)
    except ModelError as error:
        raise ModelError(f"{error}; set lora.target_modules and lora.exclude_modules") from error


def merge_for_inference(mllm: Mllm, merge: bool | None = None) -> Mllm:
    """Return the model with its adapter merged into the weights, where an adapter's layers would only cost time.

    `merge` None merges into float weights and leaves quantized ones as they are, because their sum with the adapter
    would be rounded to 4 or 8 bits. A model without an adapter is returned unchanged. The given model is modified.

    peft computes the sum in float32 and rounds it once, to the dtype of the weights. In float32 logits change by the
    order of additions; in half precision also by this rounding, which docs/performance.md measures.

    Raises:
        ModelError: `merge` is True and the weights are quantized, or peft cannot merge this kind of adapter.
    """
    if not has_adapter(mllm) or merge is False:
        return mllm
    if is_quantized(mllm):
        if merge is None:
            return mllm
        raise ModelError(
            "merge_adapter: the base model is quantized, so the merged weights would be rounded to its few bits; leave "
            "it out, or merge into the base without quantization by `sam4mllm merge`"
        )
    _untie_adapted_weights(mllm.model)
    try:
        # Not `safe_merge`, which rounds the adapter's update to the weights' dtype before it is added.
        model = mllm.model.merge_and_unload()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"peft cannot merge this adapter: {first_line(error)}; use it unmerged: merge_adapter=False, or "
            "--no-merge-adapter"
        ) from error
    return replace(mllm, model=model, adapter_merged=True)


def adapted_modules(mllm: Mllm) -> list[str]:
    """Return the names of the modules with a LoRA layer, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return [name for name, module in mllm.model.named_modules() if isinstance(module, LoraLayer)]


def has_adapter(mllm: Mllm) -> bool:
    """Return whether the model has an adapter."""
    # Without peft, whose import takes a second, no model can be one of its.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(mllm.model, peft.PeftModel)


def is_quantized(mllm: Mllm) -> bool:
    """Return whether the base model's weights are quantized, at loading or in its checkpoint."""
    base = mllm.model.get_base_model() if has_adapter(mllm) else mllm.model
    return mllm.quantization is not None or getattr(base, "hf_quantizer", None) is not None


@contextmanager
def adapter_disabled(mllm: Mllm) -> Iterator[None]:
    """Disable the model's adapter inside the block."""
    with mllm.model.disable_adapter():
        yield


def _untie_adapted_weights(model: Any) -> None:
    """Copy each adapted weight that another layer shares, such as tied embeddings: merging would change both layers."""
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        if isinstance(layer, TrainableTokensLayer):
            # Its rows are those of both layers, as peft ties them.
            continue
        base = layer.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            if owners[id(weight)] > 1:
                setattr(base, name, torch.nn.Parameter(weight.detach().clone(), requires_grad=False))
                for config in (model.config, model.config.get_text_config()):
                    config.tie_word_embeddings = False


def _tune_in_float32(model: Any) -> None:
    """Convert fully fine-tuned modules (`modules_to_save`) to float32, as peft does with LoRA's weights.

    In bfloat16 most updates of a usual learning rate would be rounded to zero. Inputs and outputs keep their dtype.
    """
    import torch
    from peft.utils.other import ModulesToSaveWrapper

    def to_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.float() if _is_half(value) else value for value in inputs)

    def to_model_dtype(module: Any, inputs: Any, output: Any) -> Any:
        return output.to(model.dtype) if torch.is_tensor(output) else output

    for wrapper in [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]:
        for copy in wrapper.modules_to_save.values():
            if any(_is_half(parameter) for parameter in copy.parameters()):
                copy.float()
                copy.register_forward_pre_hook(to_float32)
                copy.register_forward_hook(to_model_dtype)


def _leave_casts_to_autocast(model: Any) -> None:
    """Let autocast alone convert the inputs of LoRA layers where it is enabled, as peft does for quantized layers.

    Autocast multiplies in half precision. peft would convert each input to the float32 of the adapter's weights before,
    and autocast back, for each of the layers: copies of four bytes a value, which take time and memory.
    """
    import torch
    from peft.tuners.lora import Linear

    def set_casting(module: Any, inputs: tuple[Any, ...]) -> None:
        module.cast_input_dtype_enabled = not torch.is_autocast_enabled(inputs[0].device.type)

    for layer in model.modules():
        # Variants such as DoRA compute with the input outside of matrix products, in its dtype.
        if isinstance(layer, Linear) and not layer.lora_variant:
            layer.register_forward_pre_hook(set_casting)


def _is_half(value: Any) -> bool:
    import torch

    return torch.is_tensor(value) and value.dtype in (torch.bfloat16, torch.float16)


def _freeze_running_statistics(model: Any) -> None:
    """Keep layers with running statistics (batch norms of a convolutional vision tower) in evaluation mode.

    The trainer puts the model into training mode at every step. Such a layer would then normalize by the other images
    of its batch, and its statistics would drift from those of the base, which an adapter's file does not store.
    """
    from torch.nn.modules.batchnorm import _NormBase

    def set_evaluation_mode(module: Any, inputs: Any) -> None:
        module.eval()

    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.register_forward_pre_hook(set_evaluation_mode)
