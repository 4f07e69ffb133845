"""Attention on a GPU without cuDNN, which is slow where sequences have many lengths."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _CudnnAttention:
    """torch's setting for cuDNN's attention, which belongs to the process, while blocks of several threads turn it off.

    The first block that begins turns it off, and the last one that ends restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before = True

    def begin(self) -> None:
        import torch

        with self._lock:
            if not self._blocks:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._blocks += 1

    def end(self) -> None:
        import torch

        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                torch.backends.cuda.enable_cudnn_sdp(self._before)


_CUDNN_ATTENTION = _CudnnAttention()


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Compute `scaled_dot_product_attention` by its other implementations inside the block.

    On GPUs from Hopper on torch prefers cuDNN, which builds an execution plan for each new shape. A step of generation
    has one token more than the step before, and a batch of training the length of its longest row, so nearly every pass
    would wait for a plan.
    """
    _CUDNN_ATTENTION.begin()
    try:
        yield
    finally:
        _CUDNN_ATTENTION.end()
