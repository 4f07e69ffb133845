"""Device batches: halved where memory runs out, every item computed once, one message about each reduction."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence

import pytest
import torch

from sam4mllm.errors import DeviceMemoryError
from sam4mllm.utils import memory
from sam4mllm.utils.memory import DeviceBatch, is_out_of_memory


def batch_of(size: int) -> DeviceBatch:
    return DeviceBatch(size, "prompts", "free memory")


def squares_up_to(limit: int):
    """A computation that runs out of memory with more than `limit` items."""

    def compute(items: Sequence[int]) -> list[int]:
        if len(items) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")
        return [item * item for item in items]

    return compute


@pytest.mark.parametrize(("limit", "size"), [(16, 16), (15, 8), (5, 4), (2, 2), (1, 1)])
def test_batches_are_halved_until_they_fit_and_every_item_is_computed_once(limit, size, caplog) -> None:
    batch = batch_of(16)
    results = [each for part in batch.map(range(37), squares_up_to(limit)) for each in part]
    assert results == [item * item for item in range(37)] and batch.size == size
    expected = [] if size == 16 else [f"out of memory with 16 prompts at once; {size} at once from now on"]
    assert [record.getMessage().partition(", with")[0] for record in caplog.records] == expected
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    # The reduced size is kept.
    caplog.clear()
    assert list(batch.map(range(3), squares_up_to(limit))) and batch.size == size and not caplog.records


def test_a_short_rest_that_does_not_fit_is_divided_by_its_own_length() -> None:
    batch = batch_of(64)
    assert [len(part) for part in batch.map(range(6), squares_up_to(2))] == [1] * 6 and batch.size == 1


def test_too_little_memory_for_one_item_is_an_error_that_says_what_to_do() -> None:
    match = r"out of memory with one of the prompts alone: free memory \(CUDA out of memory. Tried to allocate 2 GiB.\)"
    with pytest.raises(DeviceMemoryError, match=match):
        list(batch_of(4).map(range(3), squares_up_to(0)))


def test_a_process_of_a_group_repeats_no_batch(monkeypatch) -> None:
    monkeypatch.setattr(memory, "runs_in_a_process_group", lambda: True)
    with pytest.raises(DeviceMemoryError, match=r"3 prompts at once, in one of several .*: lower the batch size"):
        list(batch_of(4).map(range(3), squares_up_to(2)))


def test_other_errors_pass() -> None:
    def fail(items: Sequence[int]) -> None:
        raise ValueError("too odd")

    with pytest.raises(ValueError, match="too odd"):
        list(batch_of(4).map(range(3), fail))


def test_the_memory_of_the_failed_attempt_is_free_before_the_next_one() -> None:
    class Tensor:
        pass

    kept: list[weakref.ref] = []

    def compute(items: Sequence[int]) -> int:
        assert all(reference() is None for reference in kept)
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        if len(items) > 1:
            raise torch.OutOfMemoryError
        return len(items)

    gc.disable()
    try:
        assert list(batch_of(4).map(range(4), compute)) == [1] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (DeviceMemoryError("out of memory with one of the prompts alone"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected) -> None:
    assert is_out_of_memory(error) is expected
