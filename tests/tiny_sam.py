"""A random Sam of segment_anything's own classes, small enough for tests, in memory or as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sam4mllm.segment.architecture import SamArchitecture
from sam4mllm.segment.segment_anything import save_checkpoint

# Pictures become 64 x 64, 64 patches of 16 channels.
TINY = SamArchitecture(
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


def tiny_sam(seed: int = 0, architecture: SamArchitecture = TINY) -> Any:
    """Random weights, moved away from the zeros of a fresh model, so that prompts matter and masks have both signs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = architecture.build()
        with torch.no_grad():
            for parameter in sam.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return sam


def save_sam(path: Path, *, seed: int = 0) -> Path:
    """The checkpoint of such a Sam at `path`."""
    save_checkpoint(path, tiny_sam(seed), TINY)
    return path
