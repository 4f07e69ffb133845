r"""Measure the memory of the weights by part of the model, quantized with and without the vision tower.

    python benchmarks/bench_quantization.py --mllm qwen2.5-vl-3b --language-layers 2

A model with random weights has the vision tower of the real size and `--language-layers` layers of the language model.
It is loaded as `train` loads it, and prepared for training with LoRA. "loaded" and "training" are MiB of the frozen
weights; "quantized" is the number of quantized layers of all linear ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from real_size import MLLMS, config_of
from script import write_json
from timing import machine

from sam4mllm.evaluation.report import text_table
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.loading import Quantization, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.utils.device import resolve_device

_VARIANTS: dict[str, tuple[Quantization | None, bool]] = {
    "bfloat16": (None, False),
    "4bit": ("4bit", False),
    "4bit, quantize_vision": ("4bit", True),
    "8bit": ("8bit", False),
    "8bit, quantize_vision": ("8bit", True),
}
_QUANTIZED = ("Linear4bit", "Linear8bitLt")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each variant by part of the model."""
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        base = save_short(options.mllm, Path(folder), options.language_layers)
        variants = {name: measure(str(base), device, *_VARIANTS[name]) for name in options.variants}
    return {"machine": machine(device), "mllm": options.mllm, "layers": options.language_layers, "variants": variants}


def save_short(name: str, folder: Path, layers: int) -> Path:
    """Save the model `name` of `MLLMS` in bfloat16 with only `layers` layers of its language model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tiny = MLLMS[name][0](folder / "tiny")
    if not MLLMS[name][1]["text"]:
        return tiny
    config = config_of(name, tiny)
    config.text_config.num_hidden_layers = layers
    if getattr(config.text_config, "layer_types", None) is not None:
        config.text_config.layer_types = config.text_config.layer_types[:layers]
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base")
    AutoProcessor.from_pretrained(tiny).save_pretrained(folder / "base")
    return folder / "base"


def measure(base: str, device: str, quantization: Quantization | None, quantize_vision: bool) -> dict[str, Any]:
    """Return MiB as loaded and in training, and the quantized and all linear layers, by part of the model."""
    mllm = load_mllm(base, device=device, quantization=quantization, quantize_vision=quantize_vision)
    parts = parts_of(mllm.model)
    figures: dict[str, Any] = {}
    for part, modules in parts.items():
        linear = [each for each in modules if isinstance(each, torch.nn.Linear)]
        quantized = sum(type(each).__name__ in _QUANTIZED for each in linear)
        figures[part] = {"loaded": mib(modules), "quantized": quantized, "linear": len(linear)}
    attach_lora(mllm, {"r": 8}, 0)
    for part, modules in parts.items():
        figures[part]["training"] = mib(modules)
    return figures


def parts_of(model: Any) -> dict[str, list[Any]]:
    """Return the modules of the model by part."""
    family = FAMILIES[model.config.model_type]
    projectors = [f"model.{name}" for name in (*family.projector, *family.frozen_projectors)]
    decoder = {id(module) for module in model.get_decoder().modules()}
    parts: dict[str, list[Any]] = {"vision tower": [], "projectors": [], "language model": [], "output layer": []}
    for name, module in model.named_modules():
        if name == "lm_head":
            parts["output layer"].append(module)
        elif any(name == each or name.startswith(f"{each}.") for each in projectors):
            parts["projectors"].append(module)
        else:
            parts["language model" if id(module) in decoder else "vision tower"].append(module)
    return parts


def mib(modules: Sequence[Any]) -> float:
    """Return the MiB of the modules' own frozen weights, with the scales of quantized ones."""
    tensors: dict[int, Any] = {}
    for module in modules:
        for weight in module.parameters(recurse=False):
            scales = getattr(weight, "quant_state", None)
            nested = None if scales is None else getattr(scales, "state2", None)
            for each in (weight.data, *(() if scales is None else (scales.absmax,))):
                tensors[each.data_ptr()] = each
            if nested is not None:
                tensors[nested.absmax.data_ptr()] = nested.absmax
    return round(sum(each.numel() * each.element_size() for each in tensors.values()) / 2**20, 1)


def table(figures: dict[str, Any]) -> list[str]:
    """Return the figures as text."""
    rows = [
        [name, part, each["loaded"], each["training"], f"{each['quantized']} of {each['linear']}"]
        for name, parts in figures["variants"].items()
        for part, each in parts.items()
    ]
    header = ["", "part", "loaded", "training", "quantized"]
    return text_table(header, [[str(cell) for cell in row] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mllm", choices=MLLMS, default="qwen2.5-vl-3b")
    parser.add_argument("--language-layers", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--variants", nargs="+", choices=_VARIANTS, default=list(_VARIANTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    figures = run(options)
    print("\n".join(table(figures)))
    write_json(figures, options.json)


if __name__ == "__main__":
    main()
