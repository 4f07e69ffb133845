"""Estimate from shapes: the memory that training needs on one GPU, and the time of an epoch.

Memory of one GPU for the longest batch, with b bytes per value (2 under bf16 or fp16, else 4):

    weights           as stored; quantized ones take 1 byte (8bit) or 0.516 bytes (nf4 with double quantization), and
                      peft casts those that are not quantized to float32 (`prepare_model_for_kbit_training`)
    adapter           4 bytes for each trained parameter
    gradients         4 bytes for each trained parameter
    optimizer states  8 bytes for each trained parameter (Adam), or 2 (8-bit Adam)
    activations       per token and layer, without gradient checkpointing: 16 * hidden for norms and residuals, b * out
                      for each linear layer and b * in for each distinct input of linear layers, 2 * rank for each
                      adapted one. With dropout an adapted layer has an input of its own, and a mask: (b + 1) * in.
                      Without autocast peft converts the input of each to float32: 4 bytes instead of b. With
                      checkpointing b * hidden per layer, and one layer in full. b for each trained parameter: its copy
                      under autocast.
    logits            vocabulary * (b + 12) per token: as computed, in float32, their log-softmax and its gradient
    segmenter         the size of its file

The activations' formula was compared with the tensors that autograd saves on a CPU in layers of Qwen2.5-VL and Qwen3-VL
(hidden 512 and 1024, LoRA of rank 8 and 128, bfloat16): it was at most 10 % too high and 2 % too low. Not counted are
the activations of the frozen vision tower, which are not saved, the copies of the prefix in recurrent layers with
`method.packing: isolated`, CUDA's context, and memory that the allocator caches: allow a tenth and 1 GiB more.

Time: 2 operations forward and 2 backward for each frozen weight of the language model and each token, 2 more for each
trained weight (its gradient), 2 more for all where checkpointing computes the layers twice; 2 for each weight of the
vision tower and each patch. The products inside attention, targets and validation are not counted.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sam4mllm.mllm.decoder import is_inside, unquantized_modules
from sam4mllm.mllm.families import Family
from sam4mllm.mllm.loading import Mllm, Quantization

DEFAULT_TFLOPS = 125.0
"""Sustained TFLOP/s of the device: two fifths of the 312 of an A100 in bfloat16 (NVIDIA's data sheet)."""

# Bytes of a quantized weight: nf4 has an 8-bit scale for each 64 weights, and a float32 for each 256 scales.
_QUANTIZED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of a model with its adapter.

    Attributes:
        parameters: Parameters of the base model.
        weight_bytes: Bytes of these parameters.
        trained: Parameters that are trained.
        language_model: Weights that each token passes through: the layers and the output layer.
        vision_tower: Weights that each image patch passes through.
        patch: Input values of one patch; None where the config does not have its size.
        layers: Layers of the language model.
        hidden: Hidden size of the language model.
        vocabulary: Rows of the output layer.
        activation_bytes: Bytes that the backward pass of one layer needs for one token.
        autocast_bytes: Bytes of the trained parameters' copies under autocast.
        dtype_bytes: Bytes of one value in the dtype of computation.
    """

    parameters: int
    weight_bytes: int
    trained: int
    language_model: int
    vision_tower: int
    patch: int | None
    layers: int
    hidden: int
    vocabulary: int
    activation_bytes: int
    autocast_bytes: int
    dtype_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU's memory by use; `segmenter` is None where its size is not known."""

    weights: int
    adapter: int
    gradients: int
    optimizer_states: int
    activations: int
    logits: int
    segmenter: int | None

    @property
    def total(self) -> int:
        """Sum of the parts that are known."""
        return sum(value or 0 for value in asdict(self).values())

    def to_json(self) -> dict[str, int | None]:
        """Return the parts and their total."""
        return {**asdict(self), "total": self.total}


def model_size(
    mllm: Mllm, quantization: Quantization | None, *, half: bool, quantize_vision: bool = False
) -> ModelSize | None:
    """Count the weights and activations of an unquantized model with its adapter; it may be on the meta device.

    Args:
        mllm: The model, not quantized.
        quantization: How its base will be quantized: "4bit", "8bit" or None.
        half: Whether it computes in 16 bits under autocast.
        quantize_vision: Whether `quantization` includes the vision tower.

    Returns:
        The counts; None for a class whose language model has no list of layers with an output layer, which the formulas
        assume.
    """
    base = mllm.model.get_base_model()
    decoder = base.get_decoder()
    output = base.get_output_embeddings()
    if output is None or not hasattr(decoder, "layers"):
        return None
    # Modules that are fully fine-tuned are copies beside the originals.
    trained = {name: parameter for name, parameter in mllm.model.named_parameters() if parameter.requires_grad}
    frozen = {name: p for name, p in base.named_parameters() if not p.requires_grad and "lora_" not in name}
    layers = list(decoder.layers)
    dtype_bytes = 2 if half or quantization is not None else mllm.dtype.itemsize
    in_layers = sum(p.numel() for layer in layers for n, p in layer.named_parameters() if "lora_" not in n)
    vision_tower, patch = vision_tower_size(base)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in frozen.values()),
        weight_bytes=_weight_bytes(base, frozen, quantization, mllm.family, quantize_vision),
        trained=sum(parameter.numel() for parameter in trained.values()),
        language_model=in_layers + output.weight.numel(),
        vision_tower=vision_tower,
        patch=patch,
        layers=len(layers),
        hidden=decoder.config.hidden_size,
        vocabulary=output.weight.shape[0],
        activation_bytes=16 * decoder.config.hidden_size + _linear_activation_bytes(layers[0], dtype_bytes, half),
        autocast_bytes=dtype_bytes * sum(parameter.numel() for parameter in trained.values()) if half else 0,
        dtype_bytes=dtype_bytes,
    )


def _linear_activation_bytes(layer: Any, dtype_bytes: int, half: bool) -> int:
    """Return the bytes that the backward pass of a layer's linear layers needs for one token.

    Without autocast (`half` is False), peft converts the input of each adapted layer to float32.
    """
    from peft.tuners.lora import LoraLayer

    total, distinct = 0, set()
    is_copied = not half and dtype_bytes < 4
    adapter_bytes = 4 if is_copied else dtype_bytes
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or "lora_" in name or name.endswith("base_layer"):
            continue
        outputs, inputs = weight.shape
        total += dtype_bytes * outputs
        adapted = isinstance(module, LoraLayer)
        if adapted:
            total += 2 * sum(module.r.values())
        if adapted and any(getattr(each, "p", 0) > 0 for each in module.lora_dropout.values()):
            total += (adapter_bytes + 1) * inputs
        elif adapted and is_copied:
            total += adapter_bytes * inputs
        else:
            # Linear layers of one module with equal widths share their input, as those of query, key and value do. The
            # input of attention's output layer has another source; it is counted where its width is another one.
            distinct.add((name.rpartition(".")[0], inputs))
    return total + dtype_bytes * sum(inputs for _, inputs in distinct)


def memory(size: ModelSize, tokens: int, *, optimizer: str, checkpointing: bool, segmenter_bytes: int | None) -> Memory:
    """Estimate one GPU's memory for training on a batch of `tokens` tokens in total, padding included.

    `optimizer` is a value of transformers' `optim`; `checkpointing` is whether gradient checkpointing is on.
    """
    per_token = size.layers * size.activation_bytes
    if checkpointing:
        per_token = size.layers * size.dtype_bytes * size.hidden + size.activation_bytes
    return Memory(
        weights=size.weight_bytes,
        adapter=4 * size.trained,
        gradients=4 * size.trained,
        optimizer_states=optimizer_state_bytes(optimizer) * size.trained,
        activations=tokens * per_token + size.autocast_bytes,
        logits=tokens * size.vocabulary * (size.dtype_bytes + 12),
        segmenter=segmenter_bytes,
    )


def optimizer_state_bytes(optimizer: str) -> int:
    """Return the bytes of the states of one trained parameter: two values in float32 or 8 bits; plain SGD has none."""
    if "8bit" in optimizer:
        return 2
    return 0 if optimizer == "sgd" else 8


def training_flops(size: ModelSize, tokens: float, patches: float, *, checkpointing: bool) -> float:
    """Estimate the floating-point operations of training on `tokens` tokens and `patches` image patches."""
    recomputed = 2 if checkpointing else 0
    text = (4 + recomputed) * size.language_model + (6 + recomputed) * size.trained
    return tokens * text + 2 * patches * size.vision_tower


def conversations_per_step(arguments: Any) -> int:
    """Return the conversations of one optimizer step over all processes; `arguments` are `TrainingArguments`."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(batch * arguments.world_size)


def optimizer_steps(conversations: int, arguments: Any) -> tuple[int, int]:
    """Return the optimizer steps of an epoch and of the training run, as transformers' Trainer counts them.

    `arguments` are `TrainingArguments`.
    """
    rounded = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = rounded(rounded(conversations / arguments.per_device_train_batch_size) / arguments.world_size)
    epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return epoch, arguments.max_steps
    return epoch, math.ceil(arguments.num_train_epochs * epoch)


def _weight_bytes(
    base: Any, frozen: dict[str, Any], quantization: Quantization | None, family: Family, quantize_vision: bool
) -> int:
    """Return the bytes of the frozen weights, of which `unquantized_modules` and the output layer keep theirs."""
    if quantization is None:
        return sum(parameter.numel() * parameter.element_size() for parameter in frozen.values())
    output = base.get_output_embeddings().weight
    unquantized = unquantized_modules(base, family, quantize_vision=quantize_vision)
    # `prepare_model_for_kbit_training` casts all weights but these to float32.
    quantized = {
        module.weight
        for name, module in base.named_modules()
        if type(module).__name__ == "Linear" and module.weight is not output and not is_inside(name, unquantized)
    }
    total = 0.0
    for parameter in frozen.values():
        total += parameter.numel() * (_QUANTIZED[quantization] if parameter in quantized else 4)
    return round(total)


def vision_tower_size(base: Any) -> tuple[int, int | None]:
    """Count the frozen weights outside the language model, and the values of one patch; None without a patch size."""
    config = getattr(base.config, "vision_config", None)
    language_model = {id(parameter) for parameter in base.get_decoder().parameters()}
    language_model.add(id(base.get_output_embeddings().weight))
    count = sum(p.numel() for p in base.parameters() if id(p) not in language_model and not p.requires_grad)
    side = getattr(config, "patch_size", None)
    if side is None:
        return count, None
    area = math.prod(side) if isinstance(side, list | tuple) else side * side
    return count, 3 * area * getattr(config, "temporal_patch_size", 1)
