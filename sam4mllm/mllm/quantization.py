"""Loading in 4 or 8 bits by bitsandbytes: transformers' config, with the modules that are not quantized."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from sam4mllm.errors import ModelError
from sam4mllm.mllm.decoder import unquantized_modules
from sam4mllm.mllm.families import family_of


def quantization_config(source: str, quantization: Literal["4bit", "8bit"], quantize_vision: bool) -> Any:
    """Return transformers' config of the quantization of the model in `source`, a folder or a Hub id.

    4 bits in all layers of the vision tower are known to break small models of the Qwen-VL families.

    Raises:
        ModelError: bitsandbytes is missing, or the class does not separate its decoder.
        OSError, ValueError, ImportError, KeyError, RuntimeError: The model's config cannot be loaded.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization {quantization!r} needs bitsandbytes: pip install 'sam4mllm[quantization]'"
        )
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config)
    skipped = unquantized_modules(model, family_of(config.model_type), quantize_vision=quantize_vision)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
