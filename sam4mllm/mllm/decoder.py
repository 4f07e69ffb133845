"""The parts of a multimodal LLM around its language model: vision tower, projectors, other encoders, output layer.

They are found in the model itself, as the modules outside of transformers' `get_decoder()`, because their names differ
between families and a pattern of names misses some (`audio_tower`, `merger`).
"""

from __future__ import annotations

import re
from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.families import Family

_FEWEST_OUTPUTS = 32
"""The smallest number of outputs of a linear layer that is quantized."""


def modules_outside_decoder(model: Any) -> list[str]:
    """Return the names of the largest modules that contain no part of the decoder, in the model's order.

    `model` is a transformers model, also on the meta device or with LoRA layers.

    Raises:
        ModelError: The class does not separate its decoder: `get_decoder` returns a model with a vision tower.
    """
    decoder = model.get_decoder()
    if decoder is model or hasattr(decoder.config, "vision_config"):
        raise ModelError(
            f"{model.config.model_type!r}: get_decoder() of {type(model).__name__} does not return the language model "
            "alone, so its modules cannot be distinguished from the vision tower's"
        )
    names: list[str] = []

    def collect(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            if child is decoder:
                continue
            if any(part is decoder for part in child.modules()):
                collect(child, f"{prefix}{name}.")
            else:
                names.append(f"{prefix}{name}")

    collect(model, "")
    return names


def outside_pattern(model: Any) -> str:
    """Return a pattern that fully matches the names of all modules outside the decoder, for peft's `exclude_modules`.

    Raises:
        ModelError: As in `modules_outside_decoder`.
    """
    return rf"({'|'.join(map(re.escape, modules_outside_decoder(model)))})(\..*)?"


def unquantized_modules(model: Any, family: Family, *, quantize_vision: bool) -> list[str]:
    """Return the names of the modules that 4- or 8-bit loading leaves as they are.

    These are all modules outside the decoder, with `quantize_vision` only the output layer and the projectors, whose
    weights can be fully fine-tuned; and everywhere the gates of experts, linear layers of few outputs: they need almost
    no memory, and bitsandbytes does not compute with them on a CPU.

    Raises:
        ModelError: As in `modules_outside_decoder`, unless `quantize_vision` is set.
    """
    if quantize_vision:
        projectors = tuple(f".{name}" for name in (*family.projector, *family.frozen_projectors))
        kept = [name for name, _ in model.named_modules() if f".{name}".endswith((".lm_head", *projectors))]
    else:
        kept = modules_outside_decoder(model)
    gates = [
        name
        for name, module in model.named_modules()
        if getattr(module, "out_features", _FEWEST_OUTPUTS) < _FEWEST_OUTPUTS and not is_inside(name, kept)
    ]
    return [*kept, *gates]


def is_inside(name: str, modules: list[str]) -> bool:
    """Return whether the module `name` is one of `modules` or a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
