"""LoRA on a loaded model, from the recipe's `lora` section: peft's own keys, with the family's defaults.

This module knows neither data nor training loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sam4mllm.errors import RecipeError
from sam4mllm.mllm.loading import Mllm


def attach_lora(mllm: Mllm, lora: Mapping[str, Any], seed: int, *, tune_projector: bool = False) -> Mllm:
    """The model with a fresh, trainable adapter; everything else is frozen.

    `lora` holds `peft.LoraConfig`'s keys; `target_modules` and `exclude_modules` default to the family's, which reach
    the linear layers of the language model alone. With `tune_projector` the modules between the eyes and the language
    model are tuned whole beside it, as `modules_to_save`. The adapter's first values depend on `seed` and on nothing
    else.

    Raises:
        RecipeError: peft refuses the settings, they match no layer, or no projector of the family is known.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    settings = {
        "task_type": "CAUSAL_LM",
        "target_modules": mllm.family.lora_targets,
        "exclude_modules": mllm.family.lora_exclude,
        **lora,
    }
    if tune_projector:
        if not mllm.family.projector:
            raise RecipeError(
                f"model.tune_projector: the projector of {mllm.family.model_type!r} is not known; name its modules in "
                "lora.modules_to_save"
            )
        settings["modules_to_save"] = [*(lora.get("modules_to_save") or []), *mllm.family.projector]
    base = mllm.model
    if mllm.quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    set_seed(seed)
    try:
        model = get_peft_model(base, LoraConfig(**settings))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"lora: peft refuses these settings: {str(error).strip().splitlines()[0]}") from error
    _freeze_statistics(model)
    _keep_in_float32(model)
    return replace(mllm, model=model)


def adapted_modules(mllm: Mllm) -> list[str]:
    """The names of the modules that the adapter changes, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return [name for name, module in mllm.model.named_modules() if isinstance(module, LoraLayer)]


def has_adapter(mllm: Mllm) -> bool:
    """Whether there is an adapter on the model."""
    from peft import PeftModel

    return isinstance(mllm.model, PeftModel)


@contextmanager
def adapter_disabled(mllm: Mllm) -> Iterator[None]:
    """The model without what its adapter learned, and with it again afterwards."""
    with mllm.model.disable_adapter():
        yield


def _keep_in_float32(model: Any) -> None:
    """Bring the copies of modules that are tuned whole to float32, as peft does with LoRA's own weights.

    In bfloat16 most steps of a usual learning rate would be rounded away. What goes in and out keeps its type.
    """
    import torch
    from peft.utils.other import ModulesToSaveWrapper

    def to_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.float() if _is_half(value) else value for value in inputs)

    def back(module: Any, inputs: Any, output: Any) -> Any:
        return output.to(model.dtype) if torch.is_tensor(output) else output

    for wrapper in [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]:
        for copy in wrapper.modules_to_save.values():
            if any(_is_half(parameter) for parameter in copy.parameters()):
                copy.float()
                copy.register_forward_pre_hook(to_float32)
                copy.register_forward_hook(back)


def _is_half(value: Any) -> bool:
    import torch

    return torch.is_tensor(value) and value.dtype in (torch.bfloat16, torch.float16)


def _freeze_statistics(model: Any) -> None:
    """Keep layers with running statistics (a convolutional tower's batch norms) as they are in use.

    The trainer sets the whole model to training mode at every step. Such a layer would then see the other images of
    its batch, and drift from the base, which the adapter's file does not record.
    """
    from torch.nn.modules.batchnorm import _NormBase

    def to_evaluation(module: Any, inputs: Any) -> None:
        module.eval()

    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.register_forward_pre_hook(to_evaluation)
