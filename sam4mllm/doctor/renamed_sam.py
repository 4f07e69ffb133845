"""A segment_anything Sam as transformers' SamModel: the same weights under the other library's names.

The two are implementations of one model, so what they answer can be compared. This module compares nothing.
"""

from __future__ import annotations

import re
from typing import Any

from sam4mllm.segmenters.architecture import SamArchitecture

# Applied in order. Source: the module names of segment_anything's `modeling/` and of transformers' `modeling_sam.py`.
_RENAMES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"^(vision_encoder\.)blocks\.", r"\1layers."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"(layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"norm_final_attn\.", "layer_norm_final_attn."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    # Heads of three layers: the first and the last have names, the one between is counted.
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.0\.", r"\1proj_in."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.2\.", r"\1proj_out."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.1\.", r"\1layers.0."),
]


def as_sam_model(sam: Any, architecture: SamArchitecture) -> Any:
    """The weights of a `segment_anything.modeling.Sam` of `architecture` as a SamModel of transformers.

    Raises:
        RuntimeError: a weight without its counterpart.
    """
    from transformers import SamConfig, SamModel

    width, size = architecture.prompt_embed_dim, architecture.image_size
    config = SamConfig(
        vision_config={
            "hidden_size": architecture.embed_dim,
            "output_channels": width,
            "num_hidden_layers": architecture.depth,
            "num_attention_heads": architecture.num_heads,
            "image_size": size,
            "patch_size": architecture.patch_size,
            "window_size": architecture.window_size,
            "global_attn_indexes": list(architecture.global_attn_indexes),
            "mlp_dim": int(architecture.embed_dim * architecture.mlp_ratio),
            "num_pos_feats": width // 2,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": size,
            "patch_size": architecture.patch_size,
            "image_embedding_size": size // architecture.patch_size,
            "mask_input_channels": architecture.mask_in_chans,
        },
        mask_decoder_config={
            "hidden_size": width,
            "num_hidden_layers": architecture.decoder_depth,
            "num_attention_heads": architecture.decoder_heads,
            "mlp_dim": architecture.decoder_mlp_dim,
            "attention_downsample_rate": architecture.attention_downsample_rate,
            "num_multimask_outputs": architecture.num_multimask_outputs,
            "iou_head_depth": architecture.iou_head_depth,
            "iou_head_hidden_dim": architecture.iou_head_hidden_dim,
        },
    )
    model = SamModel(config)
    weights = {_renamed(name): weight for name, weight in sam.state_dict().items() if not name.startswith("pixel_")}
    shared = weights["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(weights | {"shared_image_embedding.positional_embedding": shared})
    return model.eval()


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
