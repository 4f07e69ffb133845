"""The name of a model by what it is: its weights and the facts that weights do not tell. It knows no model class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint_of(told: object, weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over `told` (plain values, as `repr` writes them) and names, shapes and values of the weights."""
    digest = hashlib.sha256(repr(told).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
