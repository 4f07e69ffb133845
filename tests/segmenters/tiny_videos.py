"""Tiny random video models, saved like SAM2.1, EdgeTAM and SAM3 on the Hub: an image model and further weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sam4mllm.testing import tiny_segmenter_model

MEMORY = {
    "memory_attention_hidden_size": 16,
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_encoder_hidden_size": 16,
    "memory_encoder_output_channels": 8,
    "memory_fuser_embed_dim": 16,
    "memory_fuser_intermediate_dim": 16,
    "mask_downsampler_embed_dim": 16,
}
FEED_FORWARD = {"memory_attention_feed_forward_hidden_size": 32}
PERCEIVER = {
    "memory_attention_mlp_hidden_size": 32,
    "perceiver_resampler_hidden_size": 8,
    "perceiver_resampler_mlp_intermediate_size": 16,
    "perceiver_resampler_num_latents": 4,
    "perceiver_resampler_num_latents_2d": 4,
}


def save_video(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a video model that contains an image model of the family `name`; return its mask decoder's weights."""
    torch.manual_seed(0)
    model, decoder = {"sam2": _sam2, "edgetam": _edgetam, "sam3_tracker": _sam3}[name]()
    model.save_pretrained(folder)
    if name == "sam3_tracker":
        _name_as_the_hub_does(folder / "model.safetensors")
    return dict(decoder.state_dict())


def _sections(name: str) -> dict[str, Any]:
    config = tiny_segmenter_model(name).config
    return {part: getattr(config, part) for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}


def _plain(name: str) -> dict[str, Any]:
    """Return the sections of the image model's configuration as a video configuration takes them."""
    sections = _sections(name)
    return {part: value if part == "vision_config" else _values(value) for part, value in sections.items()}


def _values(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "model_type"}


def _sam2() -> tuple[Any, Any]:
    from transformers import Sam2VideoConfig, Sam2VideoModel

    model = Sam2VideoModel(Sam2VideoConfig(**_plain("sam2"), **MEMORY, **FEED_FORWARD, image_size=128))
    return model, model.mask_decoder


def _edgetam() -> tuple[Any, Any]:
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel

    model = EdgeTamVideoModel(EdgeTamVideoConfig(**_plain("edgetam"), **MEMORY, **PERCEIVER, image_size=128))
    return model, model.mask_decoder


def _sam3() -> tuple[Any, Any]:
    from transformers import Sam3Config, Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel

    plain = _plain("sam3_tracker")
    tracker = Sam3TrackerVideoConfig(**plain, **MEMORY, **FEED_FORWARD, image_size=112)
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    detector = Sam3Config(
        vision_config=plain["vision_config"],
        text_config=small | {"num_hidden_layers": 1, "projection_dim": 16, "vocab_size": 64},
        geometry_encoder_config=small | {"num_layers": 1},
        detr_encoder_config=small | {"num_layers": 1},
        detr_decoder_config=small | {"num_layers": 1, "num_queries": 4},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    model = Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=tracker))
    return model, model.tracker_model.mask_decoder


def _name_as_the_hub_does(file: Path) -> None:
    """Remove the second prefix that some versions of transformers write before the tracker's weights."""
    from safetensors.torch import load_file, save_file

    weights = {name.replace("tracker_model.tracker_model.", "tracker_model."): w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
