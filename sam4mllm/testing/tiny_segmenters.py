"""Tiny random segmenters of segment_anything's and transformers' real classes, saved like real checkpoints.

Images are resized to 64 (segment_anything), 112 (SAM3) or 128 pixels; a model has about 30 thousand weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.loading import silence_transformers
from sam4mllm.segmenters.segment_anything import save_checkpoint

SEGMENT_ANYTHING = "segment_anything"
"""The name of the tiny Sam of segment_anything's classes; the others are named by their family."""

TINY_SAM = SamArchitecture(
    image_size=64,
    patch_size=8,
    embed_dim=16,
    depth=2,
    num_heads=2,
    prompt_embed_dim=16,
    window_size=3,
    global_attn_indexes=(1,),
    mask_in_chans=4,
    decoder_heads=2,
    decoder_mlp_dim=32,
    iou_head_hidden_dim=16,
)
"""The sizes of the tiny Sam of segment_anything: 64 patches of 16 channels."""

_PROMPT = {"hidden_size": 16, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
_DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
_PYRAMID = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 16}
_VIT = {
    "hidden_size": 16,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "num_pos_feats": 8,
}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [128, 128],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [4, 4],
}
_SAM3_VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
    "window_size": 4,
    "global_attn_indexes": [1],
    "pretrain_image_size": 56,
}


def tiny_sam(seed: int = 0, architecture: SamArchitecture = TINY_SAM) -> Any:
    """Return a segment_anything Sam with random weights."""
    return _random(architecture.build, seed)


def tiny_segmenter_model(name: str, seed: int = 0) -> Any:
    """Return a random model of transformers' class, in evaluation mode, for a family named in `segmenters.families`."""
    return _random(_BUILDERS[name], seed).eval()


def save_tiny_segmenter(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny random segmenter and return its checkpoint.

    Args:
        name: A family of `segmenters.families` ("sam", "sam2", ...), or "segment_anything" for `tiny_sam`.
        folder: The checkpoint of a family; "segment_anything" is saved in it as `sam.pth`. It is created if it
            does not exist.
        seed: The seed of the weights.

    Raises:
        KeyError: There is no tiny model of this name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == SEGMENT_ANYTHING:
        return save_tiny_sam(folder / "sam.pth", seed=seed)
    with silence_transformers():
        tiny_segmenter_model(name, seed).save_pretrained(folder)
    return folder


def save_tiny_sam(file: Path, *, seed: int = 0) -> Path:
    """Save `tiny_sam` as a `.pth` checkpoint and return the file."""
    save_checkpoint(file, tiny_sam(seed), TINY_SAM)
    return file


def _random(build: Callable[[], Any], seed: int) -> Any:
    """Build a model and add noise to its weights.

    Some weights of a new model are zero. With noise, masks depend on the prompts, and are neither empty nor full.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _sam() -> Any:
    from transformers import SamConfig, SamModel

    prompt = _PROMPT | {"image_embedding_size": 8}
    return SamModel(SamConfig(vision_config=_VIT, prompt_encoder_config=prompt, mask_decoder_config=_DECODER))


def _sam_hq() -> Any:
    from transformers import SamHQConfig, SamHQModel

    prompt, decoder = _PROMPT | {"image_embedding_size": 8}, _DECODER | {"vit_dim": 16}
    return SamHQModel(SamHQConfig(vision_config=_VIT, prompt_encoder_config=prompt, mask_decoder_config=decoder))


def _sam2() -> Any:
    from transformers import Sam2Config, Sam2Model

    vision = _PYRAMID | {"backbone_config": _HIERA, "backbone_channel_list": [64, 32, 16, 8]}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=_PROMPT, mask_decoder_config=_DECODER))


def _sam3_tracker() -> Any:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    vision = _PYRAMID | {"model_type": "sam3_vision_model", "backbone_config": _SAM3_VIT}
    prompt = _PROMPT | {"image_size": 112, "patch_size": 14}
    return Sam3TrackerModel(
        Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_DECODER)
    )


def _edgetam() -> Any:
    from transformers import EdgeTamConfig, EdgeTamModel, EdgeTamVisionConfig, TimmWrapperConfig

    backbone = TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={
            "in_chans": 3,
            "features_only": True,
            "out_indices": [0, 1, 2, 3],
            "embed_dim": [8, 16, 24, 32],
            "depth": [1, 1, 1, 1],
        },
    )
    vision = EdgeTamVisionConfig(backbone_config=backbone, backbone_channel_list=[32, 24, 16, 8], **_PYRAMID)
    return EdgeTamModel(
        EdgeTamConfig(vision_config=vision, prompt_encoder_config=_PROMPT, mask_decoder_config=_DECODER)
    )


_BUILDERS: dict[str, Callable[[], Any]] = {
    "sam": _sam,
    "sam_hq": _sam_hq,
    "sam2": _sam2,
    "sam3_tracker": _sam3_tracker,
    "edgetam": _edgetam,
}
