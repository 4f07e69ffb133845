"""Writing of weights to files in the format safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def save_weights(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write weights by name to `file`, from whichever device they are on, and also if they are views of other tensors.

    An existing file is replaced.
    """
    from safetensors.torch import save_file

    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, file)
