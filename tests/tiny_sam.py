"""A tiny random SAM of segment_anything's own classes, saved as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from sam4mllm.segment.architecture import SamArchitecture
from sam4mllm.segment.segment_anything import save_checkpoint


def save_sam(path: Path, *, seed: int = 0) -> Path:
    """Pictures become 64 x 64, 16 patches of 32 channels."""
    architecture = SamArchitecture(
        image_size=64,
        patch_size=16,
        embed_dim=32,
        depth=1,
        num_heads=2,
        prompt_embed_dim=32,
        window_size=2,
        global_attn_indexes=(0,),
        mask_in_chans=4,
        decoder_heads=2,
        decoder_mlp_dim=32,
        iou_head_hidden_dim=32,
    )
    torch.manual_seed(seed)
    save_checkpoint(path, architecture.build(), architecture)
    return path
