"""Smaller device batches where memory runs out: DeviceBatch halves the number of items that are computed at once.

The results are those of a job that was started with the smaller batches: equal up to the rounding of the device's
arithmetic. Each reduction is logged once, and later batches keep the reduced size.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sam4mllm.errors import DeviceMemoryError
from sam4mllm.utils.messages import first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# What libraries write into a RuntimeError in place of raising torch.OutOfMemoryError.
_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that the device or the machine has too little memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError | DeviceMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def release_memory() -> None:
    """Free tensors that only reference cycles keep, and the memory that torch's allocator holds for later use."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def runs_in_a_process_group() -> bool:
    """Return whether several processes compute together in torch's process group, where none may repeat a batch alone.

    Repeating would run collective operations (of sharded weights or gradients) that the other processes do not join.
    """
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class DeviceBatch:
    """How many items a device computes at once: `size`, which is halved whenever memory runs out.

    Args:
        size: The number of items to begin with.
        unit: What the items are, in the plural, for messages.
        advice: What to do where memory does not suffice for a single item.
    """

    def __init__(self, size: int, unit: str, advice: str) -> None:
        self.size = size
        self.unit = unit
        self.advice = advice
        self._failed_with = 0

    def map(self, items: Sequence[T], compute: Callable[[Sequence[T]], R]) -> Iterator[R]:
        """Yield the results of `compute` for consecutive parts of `items` with at most `size` items each.

        A part for which memory runs out is divided and computed again, so `compute` must have no effect before it
        returns, or the same effect again.

        Raises:
            DeviceMemoryError: Memory does not suffice for one item, or several processes compute together.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            result: list[R] = []
            if not self._fits(part, compute, result):
                # The exception and the tensors in its traceback are gone here, so that their memory can be freed.
                release_memory()
                self._failed_with = max(self._failed_with, len(part))
                self.size = max(1, min(self.size, len(part)) // 2)
                continue
            self._report()
            yield result[0]
            start += len(part)

    def _report(self) -> None:
        """Log a reduced size, once it has proved to fit."""
        if self._failed_with:
            logger.warning(
                "out of memory with %d %s at once; %d at once from now on, with equal results up to rounding",
                self._failed_with,
                self.unit,
                self.size,
            )
            self._failed_with = 0

    def _fits(self, part: Sequence[T], compute: Callable[[Sequence[T]], R], result: list[R]) -> bool:
        """Append what `compute` returns to `result`; return False where memory runs out and `part` can be divided."""
        try:
            result.append(compute(part))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1 or runs_in_a_process_group():
                raise DeviceMemoryError(_message(error, len(part), self.unit, self.advice)) from error
            return False
        return True


def _message(error: BaseException, count: int, unit: str, advice: str) -> str:
    """Return what to do about an error for which a batch of `count` items cannot be divided."""
    if isinstance(error, DeviceMemoryError):
        return str(error)
    reason = first_line(error)
    if count == 1:
        return f"out of memory with one of the {unit} alone: {advice} ({reason})"
    return (
        f"out of memory with {count} {unit} at once, in one of several processes that cannot repeat a batch alone: "
        f"lower the batch size ({reason})"
    )
