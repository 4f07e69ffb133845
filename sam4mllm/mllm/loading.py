"""A multimodal LLM with its processor, from the Hub, a folder or the package, with or without a LoRA adapter.

This module knows no masks, no grammar and no training; it ends at a model that is ready to run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from sam4mllm.errors import ModelError
from sam4mllm.mllm.chat_template import patch_chat_template, turn_end
from sam4mllm.mllm.families import Family, family_of
from sam4mllm.mllm.image_size import Limits, keep_whole, limit_images, sync_tile_shapes
from sam4mllm.utils.progress import no_bar_in_a_log

if TYPE_CHECKING:
    import torch

EMBEDDED = "shapes"
"""The name of the small model that travels with the package."""

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]

_ADAPTER_CONFIG = "adapter_config.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Mllm:
    """A model, the processor that feeds it, and what is known of its family.

    `model` is a transformers model, or a `PeftModel` around one. Its tokenizer has a padding token.
    """

    model: Any
    processor: Any
    family: Family
    quantization: Quantization | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the image's numbers: that of the model's weights (LoRA's own are kept in float32)."""
        return self.model.dtype

    @property
    def end_ids(self) -> list[int]:
        """The tokens at which an answer ends, ascending.

        Beside the checkpoint's and the tokenizer's there is the one that the chat template closes a turn with: Llama
        3's is in neither place of some checkpoints.
        """
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        ids = [*ids, self.processor.tokenizer.eos_token_id, turn_end(self.processor)]
        return sorted({token for token in ids if token is not None})


def load_mllm(
    base: str,
    adapter: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
    image_size: Limits | None = None,
) -> Mllm:
    """The model `base` ("shapes", a folder or a Hub id) in evaluation mode, with `adapter` (a folder or Hub id) on it.

    The processor is the adapter's where it has one, as a run folder does, else the base's; `image_size` changes what
    it allows. `dtype` "auto" takes what the checkpoint was saved in; `quantization` needs bitsandbytes.

    Raises:
        ModelError: base, processor or adapter cannot be loaded, the base's weights are not all there, or the processor
            has no chat template that asks as it teaches.
        RecipeError: a limit in `image_size` that the family does not have.
    """
    place = place_of(base)
    model = _load_model(base, place, str(device), dtype, quantization, attn_implementation)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    family = family_of(model.config.model_type)
    processor = _load_processor(base, place, adapter)
    limit_images(processor, family.image_size, image_size or {}, family.model_type)
    sync_tile_shapes(model.config, processor)
    return Mllm(model.eval(), processor, family, quantization)


def load_processor(
    base: str, image_size: Limits | None = None, adapter: str | Path | None = None
) -> tuple[Any, Family]:
    """The processor of `base`, or of `adapter` where it has one, and what is known of its family, without the weights.

    Raises:
        ModelError: config or processor cannot be loaded, or the processor has no chat template that asks as it teaches.
        RecipeError: a limit in `image_size` that the family does not have.
    """
    from transformers import AutoConfig

    place = place_of(base)
    try:
        family = family_of(AutoConfig.from_pretrained(place).model_type)
    except (OSError, ValueError, KeyError) as error:
        raise _no_base(base, error) from error
    processor = _load_processor(base, place, adapter)
    limit_images(processor, family.image_size, image_size or {}, family.model_type)
    return processor, family


def _load_model(
    base: str,
    place: str,
    device: str,
    dtype: DType,
    quantization: Quantization | None,
    attn_implementation: str | None,
) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    extra: dict[str, Any] = {}
    if attn_implementation is not None:
        extra["attn_implementation"] = attn_implementation
    try:
        if quantization is not None:
            family = family_of(AutoConfig.from_pretrained(place).model_type)
            extra["quantization_config"] = _quantization_config(quantization, family)
            extra["device_map"] = {"": device}
        with no_bar_in_a_log():
            model, report = AutoModelForImageTextToText.from_pretrained(
                place, dtype="auto" if dtype == "auto" else getattr(torch, dtype), output_loading_info=True, **extra
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise _no_base(base, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"base model {base!r}: the checkpoint lacks {len(missing)} of the model's weights ({missing[0]}, ...), "
            "which would be random; get it whole again, or give the variant of the model that its config names"
        )
    return model if quantization is not None else model.to(device)


def _no_base(base: str, error: Exception) -> ModelError:
    """What to say when `base` does not load."""
    if is_hub_id(base) and isinstance(error, OSError):
        return ModelError(
            f"base model {base!r} is no folder here, and the Hub does not give it: {first_line(error)}; check the id "
            "and the network, or give a folder made by save_pretrained"
        )
    return ModelError(
        f"base model {base!r} does not load as an image-text-to-text model: {first_line(error)}; "
        'give a folder made by save_pretrained, a Hub id, or "shapes"'
    )


def is_hub_id(base: str) -> bool:
    """Whether `base` can only be had from the Hub or its cache."""
    return base != EMBEDDED and not Path(base).expanduser().is_dir()


def place_of(base: str) -> str:
    """The folder or Hub id that `base` names, as transformers takes it.

    Raises:
        ModelError: the path of a folder that is not there.
    """
    if base != EMBEDDED:
        if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
            raise ModelError(f"base model {base!r}: no such folder")
        return str(Path(base).expanduser()) if base.startswith("~") else base
    from sam4mllm import models

    return str(models.path("mllm"))


def _quantization_config(quantization: Quantization, family: Family) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization {quantization!r} needs bitsandbytes: pip install 'sam4mllm[quantization]'"
        )
    # Left as they are: the output layer, as ever, and what may be tuned whole, which quantised weights cannot be.
    whole = ["lm_head", *(f"model.{name}" for name in family.projector)]
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=whole,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _with_adapter(model: Any, adapter: str | Path) -> Any:
    from peft import PeftModel

    if Path(adapter).exists() and not (Path(adapter) / _ADAPTER_CONFIG).is_file():
        raise ModelError(f"{adapter}: no LoRA adapter here ({_ADAPTER_CONFIG} is missing); train one, or leave it out")
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"adapter {str(adapter)!r} does not load on {model.config.model_type!r}: {first_line(error)}; "
            "was it trained on another base?"
        ) from error


def _load_processor(base: str, place: str, adapter: str | Path | None) -> Any:
    from transformers import AutoProcessor

    source = place
    if adapter is not None and any((Path(adapter) / name).is_file() for name in _PROCESSOR_FILES):
        source = str(adapter)
    try:
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the processor of {source!r} does not load: {first_line(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(f"{source!r} has no processor for images and text: got {type(processor).__name__}")
    if processor.chat_template is None:
        if tokenizer.chat_template is None:
            raise ModelError(f"base model {base!r} has no chat template; take the chat-tuned variant of the model")
        processor.chat_template = tokenizer.chat_template
    patch_chat_template(processor)
    keep_whole(processor)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def first_line(error: BaseException) -> str:
    """What an error of a library says, on one line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
