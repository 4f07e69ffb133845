"""Writing of weights: parameters and views are written as they are read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from sam4mllm.utils.weight_files import save_weights


def test_parameters_and_transposed_weights_are_written(tmp_path: Path) -> None:
    weights = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.arange(6.0).reshape(2, 3).T}
    for _ in range(2):
        save_weights(weights, tmp_path / "weights.safetensors")
    read = load_file(tmp_path / "weights.safetensors")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weight) for name, weight in weights.items())
