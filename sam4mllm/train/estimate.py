"""What a training will need, estimated from shapes: memory of one GPU, and time. Formulas, nothing is measured here.

Memory, all at once on one GPU, for the longest batch, with b bytes a number (2 under bf16 or fp16, else 4):

    weights       as stored; of quantised ones 1 byte (8bit) or 0.516 (nf4, doubly quantised), while what stays whole is
                  brought to float32 by peft (`prepare_model_for_kbit_training`)
    adapter       4 bytes for each trained parameter, 4 for its gradient, and its moments: 8 of Adam, 2 of 8-bit Adam
    activations   per token and layer, without gradient checkpointing: b * (in + out) for each linear layer, 16 * hidden
                  for norms and residuals, and for each adapted linear layer 2 * rank and, with dropout, 4 * in; with
                  checkpointing b * hidden per layer, and one layer whole. b for each trained parameter, its cast copy.
    logits        vocabulary * (b + 12) per token: as computed, in float32, their log-softmax and its gradient
    segmenter     as large as its file

The activations' formula was compared with the tensors that autograd saves on a CPU in layers of Qwen2.5-VL and Qwen3-VL
(hidden 512 and 1024, LoRA of rank 8 and 128, bfloat16): it was at most 8 % too high and 3 % too low. Not counted are
the frozen eyes, which keep nothing, CUDA's own context, and what the allocator holds back: leave a tenth and a GiB.

Time: 2 operations forward and 2 backward for each frozen weight of the language model and each token, 2 more for each
trained one (its own gradient), 2 more for all where checkpointing computes the layers twice; 2 for each weight of the
eyes and each patch. Attention's own products, targets and validation are not counted. This module knows no data.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sam4mllm.mllm.loading import Mllm, Quantization

DEFAULT_TFLOPS = 125.0
"""Sustained TFLOP/s of the device: two fifths of the 312 that NVIDIA's data sheet of the A100 gives for bfloat16."""

# Bytes of a quantised weight: nf4 has an 8-bit scale for 64 of them, and a float32 for 256 of those.
_QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of a model with its adapter.

    `parameters` are the base's, `weight_bytes` what they take, `trained` those that are learned. `language` are the
    weights that a token goes through (the layers and the output), `eyes` those that a patch goes through, of `patch`
    values each (None where the config does not say). `kept_bytes` is what one layer keeps for one token, `cast_bytes`
    the copies of trained weights, `number_bytes` the size of a number in computing.
    """

    parameters: int
    weight_bytes: int
    trained: int
    language: int
    eyes: int
    patch: int | None
    layers: int
    hidden: int
    vocabulary: int
    kept_bytes: int
    cast_bytes: int
    number_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU's memory, by what they are for. `segmenter` is None where its size is not known."""

    weights: int
    adapter: int
    gradients: int
    moments: int
    activations: int
    logits: int
    segmenter: int | None

    @property
    def total(self) -> int:
        return sum(value or 0 for value in asdict(self).values())

    def to_json(self) -> dict[str, int | None]:
        return {**asdict(self), "total": self.total}


def model_size(mllm: Mllm, quantization: Quantization | None, *, half: bool) -> ModelSize | None:
    """The counts of an unquantised model with its adapter on; it may be on the meta device.

    None for a class whose language model is no list of layers with an output over them, as the formulas take it.

    `half` says whether it computes in 16 bits by autocast.
    """
    from peft.tuners.lora import LoraLayer

    base = mllm.model.get_base_model()
    decoder = base.get_decoder()
    output = base.get_output_embeddings()
    if output is None or not hasattr(decoder, "layers"):
        return None
    # Copies that are tuned whole stand beside their originals.
    trained = {name: parameter for name, parameter in mllm.model.named_parameters() if parameter.requires_grad}
    frozen = {name: p for name, p in base.named_parameters() if not p.requires_grad and "lora_" not in name}
    layers = list(decoder.layers)
    number_bytes = 2 if half or quantization is not None else mllm.dtype.itemsize
    kept = 16 * decoder.config.hidden_size
    for name, module in layers[0].named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or "lora_" in name or name.endswith("base_layer"):
            continue
        outputs, inputs = weight.shape
        kept += number_bytes * (inputs + outputs)
        if isinstance(module, LoraLayer):
            ranks = module.r.values()
            dropped = any(getattr(each, "p", 0) > 0 for each in module.lora_dropout.values())
            kept += 2 * sum(ranks) + (4 * inputs if dropped else 0)
    inside = sum(p.numel() for layer in layers for n, p in layer.named_parameters() if "lora_" not in n)
    eyes, patch = eyes_of(base)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in frozen.values()),
        weight_bytes=_weight_bytes(base, frozen, quantization, mllm.family.projector),
        trained=sum(parameter.numel() for parameter in trained.values()),
        language=inside + output.weight.numel(),
        eyes=eyes,
        patch=patch,
        layers=len(layers),
        hidden=decoder.config.hidden_size,
        vocabulary=output.weight.shape[0],
        kept_bytes=kept,
        cast_bytes=number_bytes * sum(parameter.numel() for parameter in trained.values()) if half else 0,
        number_bytes=number_bytes,
    )


def memory(size: ModelSize, tokens: int, *, optimizer: str, checkpointing: bool, segmenter_bytes: int | None) -> Memory:
    """One GPU's memory while it learns a batch of `tokens` tokens in all, padding counted.

    `optimizer` is transformers' name of it (`optim`).
    """
    kept = size.layers * size.kept_bytes
    if checkpointing:
        kept = size.layers * size.number_bytes * size.hidden + size.kept_bytes
    return Memory(
        weights=size.weight_bytes,
        adapter=4 * size.trained,
        gradients=4 * size.trained,
        moments=moment_bytes(optimizer) * size.trained,
        activations=tokens * kept + size.cast_bytes,
        logits=tokens * size.vocabulary * (size.number_bytes + 12),
        segmenter=segmenter_bytes,
    )


def moment_bytes(optimizer: str) -> int:
    """Bytes of the moments of one trained parameter: two numbers in float32 or in 8 bits; plain SGD has none."""
    if "8bit" in optimizer:
        return 2
    return 0 if optimizer == "sgd" else 8


def operations(size: ModelSize, tokens: float, patches: float, *, checkpointing: bool) -> float:
    """Floating-point operations to learn `tokens` tokens beside `patches` patches of images."""
    again = 2 if checkpointing else 0
    return tokens * ((4 + again) * size.language + (6 + again) * size.trained) + 2 * patches * size.eyes


def conversations_per_step(arguments: Any) -> int:
    """What one optimiser step learns from, over all processes; `arguments` are `TrainingArguments`."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(batch * arguments.world_size)


def steps(conversations: int, arguments: Any) -> tuple[int, int]:
    """The optimiser steps of an epoch and of the whole training, as transformers' trainer counts them.

    `arguments` are `TrainingArguments`.
    """
    whole = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = whole(whole(conversations / arguments.per_device_train_batch_size) / arguments.world_size)
    epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return epoch, arguments.max_steps
    return epoch, math.ceil(arguments.num_train_epochs * epoch)


def _weight_bytes(base: Any, frozen: dict[str, Any], quantization: Quantization | None, whole: tuple[str, ...]) -> int:
    if quantization is None:
        return sum(parameter.numel() * parameter.element_size() for parameter in frozen.values())
    output = base.get_output_embeddings().weight
    # `prepare_model_for_kbit_training` brings all but these to float32.
    linear = {
        module.weight
        for name, module in base.named_modules()
        if type(module).__name__ == "Linear"
        and module.weight is not output
        and not any(f".{part}." in f".{name}." for part in whole)
    }
    total = 0.0
    for parameter in frozen.values():
        total += parameter.numel() * (_QUANTISED[quantization] if parameter in linear else 4)
    return round(total)


def eyes_of(base: Any) -> tuple[int, int | None]:
    """The weights beside the language model, and the values of one patch where the config tells its size."""
    config = getattr(base.config, "vision_config", None)
    inside = {id(parameter) for parameter in base.get_decoder().parameters()}
    inside.add(id(base.get_output_embeddings().weight))
    count = sum(p.numel() for p in base.parameters() if id(p) not in inside and not p.requires_grad)
    side = getattr(config, "patch_size", None)
    if side is None:
        return count, None
    area = math.prod(side) if isinstance(side, list | tuple) else side * side
    return count, 3 * area * getattr(config, "temporal_patch_size", 1)
