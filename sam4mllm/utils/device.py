"""Resolve a device option such as "auto", "cpu" or "cuda:1"."""

from __future__ import annotations

from sam4mllm.errors import ModelError


def resolve_device(name: str) -> str:
    """Return the torch device that `name` means: "auto" is "cuda" where torch has a CUDA device, else "cpu".

    Raises:
        ModelError: An unknown device, or one that this machine lacks.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r}: not a device of torch; give auto, cpu, cuda or cuda:N") from error
    try:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {name!r}: this machine has no CUDA device that torch can use; try cpu")
        # A valid name may be of a device that is missing or, as "meta", holds no values: copy one there and back.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return name
