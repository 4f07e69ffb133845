"""SideStream: a second CUDA stream, so that a GPU computes two independent things at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class SideStream:
    """A CUDA stream beside the current one of a GPU.

    Args:
        device: The GPU.
        cuda: The module with the streams, torch.cuda; another one for tests.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._stream = cuda.Stream(device)

    def enqueue(self, compute: Callable[[], T]) -> T:
        """Call `compute` with this stream as the current one, and return its result, whose tensors need `join`.

        The GPU begins with it after the work that the current stream has at this time, and computes it while work that
        is enqueued in the current stream later runs.
        """
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._stream):
            return compute()

    def join(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let the current stream wait for this one, after which it may use `tensors`, the results of this stream.

        Their memory is then given to others only after the current stream's use of them.
        """
        current = self._cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in tensors:
            tensor.record_stream(current)
