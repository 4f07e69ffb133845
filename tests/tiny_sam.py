"""The random Sam of segment_anything's own classes, small enough for tests, in memory or as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.segmenters.segment_anything import save_checkpoint
from sam4mllm.testing.tiny_segmenters import TINY, tiny_sam

__all__ = ["TINY", "save_sam", "tiny_sam"]


def save_sam(path: Path, *, seed: int = 0) -> Path:
    """The checkpoint of such a Sam at `path`."""
    save_checkpoint(path, tiny_sam(seed), TINY)
    return path
