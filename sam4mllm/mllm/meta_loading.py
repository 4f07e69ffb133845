"""Load a multimodal LLM without its weights: the real classes on torch's meta device, with the real processor.

Quantities that depend on shapes alone (numbers of parameters, the size of an adapter, the tokens of a conversation) are
computed with it within seconds and without the memory of the weights. The model cannot run.
"""

from __future__ import annotations

from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.adapters import loading_problem
from sam4mllm.mllm.image_size import Limits
from sam4mllm.mllm.loading import DType, Mllm, load_processor, resolve_base


def load_meta_mllm(base: str, *, dtype: DType = "auto", image_size: Limits | None = None) -> Mllm:
    """Return what `load_mllm` returns for `base`, on the meta device: only config and processor are read.

    The weights have the dtype that they would have, but are not quantized: `quantization` is None.

    Raises:
        ModelError: Config or processor cannot be loaded, or the processor has no usable chat template.
        RecipeError: A limit in `image_size` that the family does not support.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    processor, family = load_processor(base, image_size)
    source = resolve_base(base)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        # Some checkpoints have their dtype in the language model's config only.
        stored = config.dtype or config.get_text_config().dtype or torch.float32
        chosen = stored if dtype == "auto" else getattr(torch, dtype)
        # Buffers are created with values, because some classes compute with them in their constructors.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(config, dtype=chosen)
        # On the meta device tied weights have become separate tensors.
        model.tie_weights()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"base model {base!r} is not an image-text-to-text model of transformers: {loading_problem(error)}"
        ) from error
    model.generation_config = _generation_config(source, model.generation_config)
    return Mllm(model.eval(), processor, family)


def _generation_config(source: str, default: Any) -> Any:
    """Return the checkpoint's generation config, which has the end tokens; `default` if the checkpoint has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return default
