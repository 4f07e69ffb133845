"""What is known of each family of multimodal LLMs, as a table: one row a model type, no branches elsewhere.

A row holds facts that cannot be read from a checkpoint: which of its modules LoRA may touch, and in which coordinates
the family was taught to speak of places. This module loads nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer; in every family it names the vision tower's too, so it wants an exclusion."""

OUTSIDE_THE_LANGUAGE_MODEL = r".*(vision|visual|multi_modal|connector|projector|lm_head).*"
"""Full-match pattern of the modules beside the language model; tried on every family of the table."""


@dataclass(frozen=True, slots=True)
class Family:
    """The facts of one family.

    `native_grid` is the number of bins each way in which its own grounding data was written (None: in other units, or
    not published). `lora_targets` and `lora_exclude` are the defaults of peft's `target_modules` and `exclude_modules`.
    """

    model_type: str
    native_grid: int | None = None
    lora_targets: str = ALL_LINEAR
    lora_exclude: str = OUTSIDE_THE_LANGUAGE_MODEL


# `native_grid`: Qwen2-VL, Qwen3-VL and InternVL speak of 0 to 1000; Qwen2.5-VL of pixels of the resized picture; LLaVA
# of shares of the padded square; the others do not say.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("fast_vlm"),
        Family("gemma3"),
        Family("idefics3"),
        Family("internvl", native_grid=1000),
        Family("llava"),
        Family("llava_next"),
        Family("llava_onevision"),
        Family("qwen2_5_vl"),
        Family("qwen2_vl", native_grid=1000),
        Family("qwen3_5"),
        Family("qwen3_vl", native_grid=1000),
        Family("smolvlm"),
    )
}


def family_of(model_type: str) -> Family:
    """The row of `model_type`; for a type without one the defaults, with a warning."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    warnings.warn(
        f"model type {model_type!r} was not tried; the defaults are used, so check that LoRA touches the language "
        f"model only (tried: {', '.join(sorted(FAMILIES))})",
        stacklevel=2,
    )
    return Family(model_type)
