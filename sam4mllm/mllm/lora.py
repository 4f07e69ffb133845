"""LoRA on a loaded model, from the recipe's `lora` section: peft's own keys, with the family's defaults.

This module knows neither data nor training loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sam4mllm.errors import RecipeError
from sam4mllm.mllm.load import Mllm


def attach_lora(mllm: Mllm, lora: Mapping[str, Any], seed: int) -> Mllm:
    """The model with a fresh, trainable adapter; everything else is frozen.

    `lora` holds `peft.LoraConfig`'s keys; `target_modules` and `exclude_modules` default to the family's, which reach
    the linear layers of the language model alone. The adapter's first values depend on `seed` and on nothing else.

    Raises:
        RecipeError: peft refuses the settings, or they match no layer.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    settings = {
        "task_type": "CAUSAL_LM",
        "target_modules": mllm.family.lora_targets,
        "exclude_modules": mllm.family.lora_exclude,
        **lora,
    }
    base = mllm.model
    if mllm.quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    set_seed(seed)
    try:
        model = get_peft_model(base, LoraConfig(**settings))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"lora: peft refuses these settings: {str(error).strip().splitlines()[0]}") from error
    _freeze_statistics(model)
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


def _freeze_statistics(model: Any) -> None:
    """Keep layers with running statistics (a convolutional tower's batch norms) as they are in use.

    The trainer sets the whole model to training mode at every step. Such a layer would then see the other pictures of
    its batch, and drift from the base, which the adapter's file does not record.
    """
    from torch.nn.modules.batchnorm import _NormBase

    def to_evaluation(module: Any, inputs: Any) -> None:
        module.eval()

    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.register_forward_pre_hook(to_evaluation)
