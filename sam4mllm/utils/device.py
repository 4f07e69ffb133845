"""The device that a name such as "auto", "cpu" or "cuda:1" means on this machine."""

from __future__ import annotations

from sam4mllm.errors import ModelError


def resolve_device(name: str) -> str:
    """The device that `name` means: "auto" is cuda where there is one, else the CPU.

    Raises:
        ModelError: no such device, or none here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {name!r}: this machine has no CUDA device that torch can use; try cpu")
        # There and back: a device may have a name and not be here, or, as "meta", hold no values.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return name
