"""Which modules of a model are outside of its language model: for LoRA's exclusion and for quantization."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sam4mllm.errors import ModelError
from sam4mllm.mllm.decoder import is_inside, modules_outside_decoder, outside_pattern, unquantized_modules
from sam4mllm.mllm.families import FAMILIES, Family
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import adapted_modules, attach_lora
from sam4mllm.testing import save_tiny_mllm


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.vision_expert = nn.Linear(4, 4)
        self.config = SimpleNamespace(model_type="text")


class AudioVisualModel(nn.Module):
    """A model whose modules have names that a pattern of usual names misses, as in Gemma 4 and MiniCPM-V."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower = nn.Sequential(nn.Linear(4, 4))
        self.model.audio_tower = nn.Sequential(nn.Linear(4, 4))
        self.model.language_model = Decoder()
        self.model.merger = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 4)
        self.config = SimpleNamespace(model_type="my_vlm", vision_config={})

    def get_decoder(self):
        return self.model.language_model

    def get_output_embeddings(self):
        return self.lm_head


def test_all_modules_outside_the_decoder_are_found_whatever_their_names():
    names = modules_outside_decoder(AudioVisualModel())
    assert names == ["model.vision_tower", "model.audio_tower", "model.merger", "lm_head"]


def test_the_pattern_matches_these_modules_and_their_parts_alone():
    model = AudioVisualModel()
    matched = [name for name, _ in model.named_modules() if re.fullmatch(outside_pattern(model), name)]
    assert matched == [
        "model.vision_tower",
        "model.vision_tower.0",
        "model.audio_tower",
        "model.audio_tower.0",
        "model.merger",
        "lm_head",
    ]


@pytest.mark.parametrize("decoder", ["self", "composite"])
def test_a_class_that_does_not_tell_its_decoder_apart_is_refused(decoder, monkeypatch):
    model = AudioVisualModel()
    model.model.config = model.config
    monkeypatch.setattr(AudioVisualModel, "get_decoder", lambda self: self if decoder == "self" else self.model)
    with pytest.raises(ModelError, match=r"'my_vlm': get_decoder\(\) of AudioVisualModel does not return the language"):
        modules_outside_decoder(model)
    mllm = Mllm(model, None, Family("my_vlm", "My VLM"))
    with pytest.raises(ModelError, match=r"set lora\.target_modules and lora\.exclude_modules"):
        attach_lora(mllm, {"r": 2}, 0)


@pytest.mark.parametrize(
    ("family", "quantize_vision", "expected"),
    [
        ("qwen3_vl", False, ["model.visual", "lm_head"]),
        ("qwen3_vl", True, ["model.visual.merger", "model.visual.deepstack_merger_list", "lm_head"]),
        ("fast_vlm", False, ["model.vision_tower", "model.multi_modal_projector", "lm_head"]),
        ("fast_vlm", True, ["model.multi_modal_projector", "lm_head"]),
        (
            "gemma4",
            False,
            ["model.vision_tower", "model.audio_tower", "model.embed_vision", "model.embed_audio", "lm_head"],
        ),
        ("gemma4", True, ["model.embed_vision", "model.embed_audio", "lm_head"]),
        ("minicpmv4_6", True, ["model.merger", "lm_head"]),
        # The gate of the shared expert has one output.
        (
            "qwen3_5_moe",
            False,
            [
                "model.visual",
                "lm_head",
                "model.language_model.layers.0.mlp.shared_expert_gate",
                "model.language_model.layers.1.mlp.shared_expert_gate",
            ],
        ),
    ],
)
def test_unquantized_modules_by_their_names_in_the_real_classes(family, quantize_vision, expected, tmp_path):
    model = load_mllm(str(save_tiny_mllm(family, tmp_path / "base"))).model
    names = unquantized_modules(model, FAMILIES[family], quantize_vision=quantize_vision)
    assert names == expected
    assert all(model.get_submodule(name) is not None for name in names)


def test_lora_adapts_the_language_model_alone_where_names_differ(tmp_path):
    tuned = attach_lora(load_mllm(str(save_tiny_mllm("gemma4", tmp_path / "base"))), {"r": 2}, 0)
    names = adapted_modules(tuned)
    assert names and all(name.startswith("base_model.model.model.language_model.") for name in names)


def test_the_tuned_projector_of_minicpm_v_is_not_the_merger_inside_its_vision_tower(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("minicpmv4_6", tmp_path / "base")))
    tuned = attach_lora(mllm, {"r": 2}, 0, tune_projector=True)
    trained = {name for name, p in tuned.model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained and all(name.startswith("base_model.model.model.merger.") for name in trained)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_lora_reaches_all_linear_layers_of_a_mixture_except_the_fused_experts(family, tmp_path):
    mllm = load_mllm(str(save_tiny_mllm(family, tmp_path / "base")))
    assert (mllm.family.coordinates.frame.bins_wh, mllm.family.projector) == ((1000, 1000), ("visual.merger",))
    linear = {
        f"base_model.model.model.language_model.{name}"
        for name, module in mllm.model.get_decoder().named_modules()
        if isinstance(module, nn.Linear)
    }
    tuned = attach_lora(mllm, {"r": 2}, 0)
    assert set(adapted_modules(tuned)) == linear and not any(".experts" in name for name in linear)
    assert any(".shared_expert." in name for name in linear) is (family == "qwen3_5_moe")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("quantize_vision", [False, True])
def test_quantized_layers_of_a_loaded_model(quantization, quantize_vision, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = str(save_tiny_mllm("qwen3_vl", tmp_path / "base"))
    mllm = load_mllm(base, quantization=quantization, quantize_vision=quantize_vision)
    classes = {name: type(module).__name__ for name, module in mllm.model.named_modules()}
    quantized = {name for name, each in classes.items() if each in ("Linear4bit", "Linear8bitLt")}
    assert any(is_inside(name, ["model.language_model"]) for name in quantized)
    assert any(is_inside(name, ["model.visual.blocks"]) for name in quantized) is quantize_vision
    kept = ["lm_head", "model.visual.merger", "model.visual.deepstack_merger_list"]
    assert not any(is_inside(name, kept) for name in quantized)
    weight = mllm.model.model.visual.deepstack_merger_list[0].linear_fc1.weight
    assert weight.dtype == torch.float32


def test_a_name_is_inside_a_module_at_the_bounds_of_its_parts():
    assert is_inside("model.visual.merger.mlp", ["model.visual.merger"])
    assert not is_inside("model.visual.merger_2", ["model.visual.merger"])
