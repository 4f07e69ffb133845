"""A multimodal LLM without its weights: the real classes on torch's meta device, with the real processor.

What depends on shapes alone can be asked of it (how many weights there are, what an adapter adds, how a conversation is
tokenised) within seconds and without memory. It cannot run. This module knows no data and no training.
"""

from __future__ import annotations

from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.image_size import Limits
from sam4mllm.mllm.loading import DType, Mllm, first_line, load_processor, place_of


def load_meta_mllm(base: str, *, dtype: DType = "auto", image_size: Limits | None = None) -> Mllm:
    """What `load_mllm` makes of `base`, on the meta device: only config and processor are read.

    Its weights have the type that they would have, but are not quantised: `quantization` is None.

    Raises:
        ModelError: config or processor cannot be loaded, or the processor has no chat template.
        RecipeError: a limit in `image_size` that the family does not have.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    processor, family = load_processor(base, image_size)
    place = place_of(base)
    try:
        config = AutoConfig.from_pretrained(place)
        chosen = config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
        # Buffers are made as they are: some classes compute with them while they are built.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(config, dtype=chosen)
        # On its way to the meta device each of two names of one weight got a tensor of its own.
        model.tie_weights()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"base model {base!r} is no image-text-to-text model of transformers: {first_line(error)}"
        ) from error
    model.generation_config = _generation_config(place, model.generation_config)
    return Mllm(model.eval(), processor, family)


def _generation_config(place: str, made: Any) -> Any:
    """The checkpoint's own, which says where an answer ends; where it has none, the one `made` from the config."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(place)
    except OSError:
        return made
