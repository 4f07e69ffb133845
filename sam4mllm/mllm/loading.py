"""Load a multimodal LLM and its processor from the Hub, a folder or this package, with or without a LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from sam4mllm.errors import ModelError
from sam4mllm.mllm.adapters import first_line, load_adapter, loading_problem
from sam4mllm.mllm.chat_template import patch_chat_template, turn_end
from sam4mllm.mllm.families import FAMILIES, Family, family_of
from sam4mllm.mllm.image_size import Limits, image_size_rule, limit_images, pad_instead_of_crop, sync_tile_shapes
from sam4mllm.mllm.location_weights import attach_saved_heads, check_complete, location_heads_of, restore_token
from sam4mllm.mllm.quantization import quantization_config
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.utils.hub import use_cache_if_unreachable
from sam4mllm.utils.library_logging import transformers_bars_on_terminals_only

if TYPE_CHECKING:
    import torch

    from sam4mllm.mllm.location_heads import LocationHeads

EMBEDDED = "shapes"
"""The name of the small model that is embedded in the package."""
EMBEDDED_LOCATIONS = "shapes-locations"
"""The name of that model with an embedded adapter merged into it, by which it knows location tokens."""
EMBEDDED_BASES = (EMBEDDED, EMBEDDED_LOCATIONS)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Mllm:
    """A multimodal LLM: model, processor, and the facts about its family.

    `model` is a transformers model, or a `PeftModel` around one; with `adapter_merged` it is a transformers model that
    has an adapter's update in its weights. The processor's tokenizer has a padding token. A model with location heads
    has the location token in its tokenizer, too.
    """

    model: Any
    processor: Any
    family: Family
    quantization: Quantization | None = None
    adapter_merged: bool = False

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights and of its image inputs; LoRA's weights are float32."""
        return self.model.dtype

    @property
    def location_heads(self) -> LocationHeads | None:
        """The location heads, an adapter's if it has any; None for a model without."""
        return location_heads_of(self.model)

    @property
    def location_id(self) -> int | None:
        """The id of the location token; None for a model without location heads."""
        if self.location_heads is None:
            return None
        token: int = self.processor.tokenizer.convert_tokens_to_ids(LOCATION_TOKEN)
        return token

    @property
    def end_ids(self) -> list[int]:
        """The ids of the tokens that end an answer, ascending.

        They are those of the generation config and of the tokenizer, and the token that ends a turn in the chat
        template, which some checkpoints of Llama 3 have in neither of the other places.
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
    quantize_vision: bool = False,
    attn_implementation: str | None = None,
    image_size: Limits | None = None,
    processor: Any = None,
) -> Mllm:
    """Load the model `base` in evaluation mode, with `adapter` (a folder or a Hub id) on it.

    Location heads are attached if base or adapter has them; see `location_weights.py`.

    Args:
        base: "shapes" or "shapes-locations" (the embedded models), a folder or a Hub id.
        adapter: An adapter that `load_adapter` loads: a folder, such as a run folder, or a Hub id.
        device: The device that the model is loaded on.
        dtype: "auto" is the dtype in which the checkpoint was saved.
        quantization: "4bit" or "8bit", which need bitsandbytes; None for no quantization.
        quantize_vision: Whether `quantization` includes the linear layers of the vision tower, and everything else
            outside the language model except the projectors and the output layer.
        attn_implementation: As in `from_pretrained`; None for transformers' choice.
        image_size: Limits that replace those of the processor. The processor is the adapter's if it has one, as in a
            run folder, else the base's.
        processor: The processor that `load_processor` loaded for the same base, limits and adapter; None to load it.

    Raises:
        ModelError: Base, processor or adapter cannot be loaded, weights of the base are missing, or the processor has
            no usable chat template.
        RecipeError: A limit in `image_size` that the family does not support.
    """
    source = resolve_base(base)
    try:
        quantized = None if quantization is None else quantization_config(source, quantization, quantize_vision)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise _base_error(base, error) from error
    weights = resolve_base(EMBEDDED) if base == EMBEDDED_LOCATIONS else source
    check_complete(weights)
    model = _load_model(base, weights, str(device), dtype, quantized, attn_implementation)
    if base == EMBEDDED_LOCATIONS:
        model = load_adapter(model, source).merge_and_unload()
    attach_saved_heads(model, source)
    if adapter is not None:
        model = load_adapter(model, adapter)
    processor = _load_processor(base, source, adapter) if processor is None else processor
    restore_token(model, processor)
    family = _limit_images(processor, family_of(model.config.model_type), image_size)
    sync_tile_shapes(model.config, processor)
    return Mllm(model.eval(), processor, family, quantization)


def load_processor(
    base: str, image_size: Limits | None = None, adapter: str | Path | None = None
) -> tuple[Any, Family]:
    """Load the processor of `adapter` if it has one, else of `base`, and the facts about the family, without weights.

    Raises:
        ModelError: Config or processor cannot be loaded, or the processor has no usable chat template.
        RecipeError: A limit in `image_size` that the family does not support.
    """
    from transformers import AutoConfig

    source = resolve_base(base)
    try:
        family = family_of(AutoConfig.from_pretrained(source, trust_remote_code=False).model_type)
    except (OSError, ValueError, KeyError) as error:
        raise _base_error(base, error) from error
    processor = _load_processor(base, source, adapter)
    return processor, _limit_images(processor, family, image_size)


def longest_input(config: Any) -> int | None:
    """Return the number of positions of a model's language model; None if its config does not have it."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_config(base: str) -> Any:
    """Load the config of a base model.

    Raises:
        ModelError: The config cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve_base(base), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _base_error(base, error) from error


def _limit_images(processor: Any, family: Family, limits: Limits | None) -> Family:
    """Set the limits in `processor`; return the family, without a row in the table with its processor's own rule."""
    if family.model_type not in FAMILIES:
        family = replace(family, image_size=image_size_rule(processor.image_processor))
    limit_images(processor, family.image_size, limits or {}, family.model_type)
    return family


def _load_model(
    base: str,
    source: str,
    device: str,
    dtype: DType,
    quantization_config: Any,
    attn_implementation: str | None,
) -> Any:
    """Load the weights of `source`; `base` is its name in errors. `quantization_config` is None or transformers'.

    Raises:
        ModelError: The base cannot be loaded, or some of its weights are missing.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    extra: dict[str, Any] = {}
    if attn_implementation is not None:
        extra["attn_implementation"] = attn_implementation
    if quantization_config is not None:
        extra["quantization_config"] = quantization_config
        extra["device_map"] = {"": device}
    try:
        with transformers_bars_on_terminals_only():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
                trust_remote_code=False,
                **extra,
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise _base_error(base, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"base model {base!r}: the checkpoint lacks {len(missing)} of the model's weights ({missing[0]}, ...), "
            "which would be random; download it again, or use the variant of the model that its config names"
        )
    return model if quantization_config is not None else model.to(device)


def _base_error(base: str, error: Exception) -> ModelError:
    """Return the error for a base model that does not load."""
    if is_hub_id(base) and isinstance(error, OSError):
        return ModelError(
            f"base model {base!r} is not a folder, and cannot be downloaded from the Hub: {first_line(error)}; check "
            "the id and the network, or give a folder written by save_pretrained"
        )
    return ModelError(
        f"base model {base!r} does not load as an image-text-to-text model: {loading_problem(error)}; "
        'give a folder written by save_pretrained, a Hub id, or "shapes"'
    )


def is_hub_id(base: str) -> bool:
    """Return whether `base` can only be loaded from the Hub or its cache."""
    return base not in EMBEDDED_BASES and not Path(base).expanduser().is_dir()


def resolve_base(base: str) -> str:
    """Return the folder or Hub id that `base` names, in the form that transformers accepts.

    Raises:
        ModelError: The path of a folder that does not exist.
    """
    if base not in EMBEDDED_BASES:
        if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
            raise ModelError(
                f"base model {base!r}: no such folder{'' if Path(base).is_absolute() else f' in {Path.cwd()}'}; give a "
                'folder written by save_pretrained, a Hub id, or "shapes"'
            )
        if is_hub_id(base):
            use_cache_if_unreachable()
        return str(Path(base).expanduser()) if base.startswith("~") else base
    from sam4mllm import models

    return str(models.path("mllm" if base == EMBEDDED else "mllm_locations"))


def _load_processor(base: str, source: str, adapter: str | Path | None) -> Any:
    """Load the processor, and patch its chat template, its cropping of images and its padding token where needed."""
    from transformers import AutoProcessor

    if adapter is not None and any((Path(adapter) / name).is_file() for name in _PROCESSOR_FILES):
        source = str(adapter)
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the processor of {source!r} does not load: {loading_problem(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(f"{source!r} has no processor for images and text: got {type(processor).__name__}")
    if processor.chat_template is None:
        if tokenizer.chat_template is None:
            raise ModelError(f"base model {base!r} has no chat template; use the chat-tuned variant of the model")
        processor.chat_template = tokenizer.chat_template
    patch_chat_template(processor)
    pad_instead_of_crop(processor)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor
