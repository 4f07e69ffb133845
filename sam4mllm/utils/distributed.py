"""Communication between the processes that a launcher (torchrun, `accelerate launch`) started for one job.

The processes communicate through the launcher's key-value store and not through a process group, so that training can
set up its own group with its own backend and the other stages need none; accelerate's `PartialState` sets up a group
as soon as it is made. Every process must make the same calls in the same order. If a process dies, the launcher ends
the others; without a launcher, waiting ends with an error after `TIME_LIMIT`.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from sam4mllm.errors import LaunchError
from sam4mllm.utils.progress import Advance
from sam4mllm.utils.shared_result import read_shared, write_shared

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TIME_LIMIT = timedelta(hours=1)
"""How long a process waits for the others. Work is distributed in small parts, so a longer wait means a failure."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class DistributedContext:
    """One process's view of the job: its `rank` of `world_size`, its `local_rank` on this machine.

    `join_processes` makes it from the launcher's environment variables; `SINGLE_PROCESS` is the one without a launcher.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        *,
        store: Store | None = None,
        time_limit: timedelta = TIME_LIMIT,
    ) -> None:
        if world_size > 1 and store is None:
            raise ValueError(f"{world_size} processes need a key-value store; got None")
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._store = store
        self._time_limit = time_limit
        self._calls = itertools.count()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which decides, prints and merges."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"

    def device(self, name: str) -> str:
        """Return the device of this process for the option `name`: for "cuda" and "auto" the GPU of its local rank.

        Raises:
            LaunchError: A single GPU was named for several processes, or the machine has fewer GPUs than processes.
        """
        if self.world_size == 1 or name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise LaunchError(f"--device {name} is one device for {self.world_size} processes; use cuda or cpu")
        import torch

        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        if self.local_rank >= torch.cuda.device_count():
            raise LaunchError(
                f"{self}: this machine has {torch.cuda.device_count()} GPU(s), and this is its process number "
                f"{self.local_rank + 1}; start one process per GPU (torchrun --nproc-per-node), or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Wait until all processes have made this call.

        Raises:
            LaunchError: A process did not make it within the time limit.
        """
        if self._store is None:
            return
        key = self._next_key()
        if self._store.add(key, 1) == self.world_size:
            self._store.set(f"{key}/all", "")
        self._await(self._store, f"{key}/all")

    def broadcast_result(self, compute: Callable[[], T]) -> T:
        """Call `compute` in the main process alone and return its result, plain JSON values, in all processes.

        Raises:
            LaunchError: The main process had no result within the time limit.
        """
        if self._store is None:
            return compute()
        key = self._next_key()
        if self.is_main:
            result = compute()
            self._store.set(key, json.dumps(result))
            return result
        self._await(self._store, key)
        return json.loads(self._store.get(key))

    def compute_on_machine(self, compute: Callable[[], T]) -> T:
        """Call `compute` in one process of each machine and return its result, which pickle can copy, in all processes.

        A file that only this user can read carries the result. Processes that cannot read it, because their folders of
        temporary files differ, and those of a machine where `compute` raised an error, call `compute` themselves.

        Raises:
            LaunchError: A process had no result within the time limit.
        """
        if self._store is None:
            return compute()
        # Of the processes with equal names of machine, the first computes.
        machines = self.gather(_machine())
        first = machines.index(machines[self.rank])
        key = f"{self._next_key()}/{first}"
        if self.rank != first:
            self._await(self._store, key)
            result = read_shared(self._store.get(key).decode(), compute)
            self.barrier()
            return result
        with TemporaryDirectory(prefix="sam4mllm-") as folder:
            path = ""
            try:
                result = compute()
                path = write_shared(result, Path(folder)) if machines.count(machines[first]) > 1 else ""
            finally:
                self._store.set(key, path)
            self.barrier()
        return result

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every process, plain JSON values, ordered by rank, in all processes.

        Raises:
            LaunchError: A process passed no value within the time limit.
        """
        if self._store is None:
            return [value]
        key = self._next_key()
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        for rank in range(self.world_size):
            self._await(self._store, f"{key}/{rank}")
        return [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(self.world_size)]

    def distribute(self, items: Sequence[T]) -> Iterator[T]:
        """Yield the items that this process takes: each item goes to one process, to whichever is free first.

        `items` must be the same in all processes, and the result for an item must not depend on the process.
        """
        if self._store is None:
            yield from items
            return
        key = self._next_key()
        while (index := self._store.add(key, 1) - 1) < len(items):
            yield items[index]

    def aggregate_progress(self, advance: Advance) -> Advance:
        """Return an `Advance` that reports the progress of all processes to the main process's `advance`."""
        store = self._store
        if store is None:
            return advance
        key = self._next_key()
        reported = 0

        def count(count: int = 1, /) -> None:
            nonlocal reported
            total = store.add(key, count)
            if self.is_main:
                advance(total - reported)
                reported = total

        return count

    def _next_key(self) -> str:
        """Return the store's key for this call, the same in all processes as they make the same calls in order."""
        return f"sam4mllm/{next(self._calls)}"

    def _await(self, store: Store, key: str) -> None:
        from torch.distributed import DistError

        try:
            store.wait([key], self._time_limit)
        except DistError as error:
            raise LaunchError(
                f"{self}: timed out after {self._time_limit.total_seconds():g} s waiting for the other ranks; one "
                "crashed or hangs: restart the job"
            ) from error


def _machine() -> str:
    """Return what is equal for the processes of one machine: its name, and on Linux the identity of its start."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot_id.read_text() if boot_id.is_file() else ''}"


SINGLE_PROCESS = DistributedContext()
"""The context of a job that runs in one process."""


@contextmanager
def join_processes(time_limit: timedelta = TIME_LIMIT) -> Iterator[DistributedContext]:
    """Join the other processes of the job, by the launcher's environment variables, and yield when all have joined.

    Unless the block raises an error, wait for all of them again at its end, because the main process may hold the
    store.

    Raises:
        LaunchError: Contradicting environment variables, or fewer processes than were requested.
    """
    world_size = _requested_processes()
    if world_size == 1:
        yield DistributedContext()
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    # 1. Connect to the launcher's store.
    rank, local_rank = _environment_number("RANK"), _environment_number("LOCAL_RANK")
    if rank >= world_size:
        raise LaunchError(f"RANK is {rank}, but WORLD_SIZE is {world_size}; start the job by torchrun")
    try:
        store, _, _ = next(rendezvous("env://", timeout=time_limit))
    except distributed.DistError as error:
        raise LaunchError(
            f"process {rank} of {world_size} cannot reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    processes = DistributedContext(rank, world_size, local_rank, store=store, time_limit=time_limit)

    # 2. Run the job between two barriers.
    processes.barrier()
    yield processes
    processes.barrier()
    if distributed.is_initialized():
        distributed.destroy_process_group()

    # 3. The main process may hold the store, which the others need for their last call: it leaves after them.
    if store.add("sam4mllm/left", 1) == world_size:
        store.set("sam4mllm/all left", "")
    if processes.is_main:
        processes._await(store, "sam4mllm/all left")


def _requested_processes() -> int:
    """Return how many processes the launcher was asked for, 1 without a launcher.

    Raises:
        LaunchError: The launcher was asked for several processes and started one, or set only some of the variables.
    """
    if "WORLD_SIZE" not in os.environ:
        # `accelerate launch --cpu --num_processes 2` sets the store's address, and then starts a single process.
        if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            raise LaunchError(
                "accelerate launch was asked for several processes and started one; on a CPU use "
                "`torchrun --nproc-per-node N -m sam4mllm ...`, on GPUs add --multi_gpu"
            )
        return 1
    world_size = _environment_number("WORLD_SIZE")
    missing = [name for name in _VARIABLES if name not in os.environ]
    if world_size > 1 and missing:
        raise LaunchError(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set; start the job by torchrun")
    return max(world_size, 1)


def _environment_number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise LaunchError(f"the environment variable {name} is not a number: {text!r}; start the job by torchrun")
    return int(text)
