"""Processes: the processes that a launcher (torchrun, `accelerate launch`) started for one job, and how they agree.

They meet at the launcher's key-value store and not in a process group, so training may set up the group that it wants,
on the backend that it wants, and the other stages need none. Every process makes the same calls in the same order. Of
a process that dies the launcher tells the others by ending them; where no launcher watches, waiting has a time limit.
This module knows nothing of data and of what is computed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from sam4mllm.errors import LaunchError
from sam4mllm.utils.progress import Advance

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TIME_LIMIT = timedelta(hours=1)
"""How long one process waits for another. Work is shared out in small parts, so a wait of this length is a failure."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class DistributedContext:
    """One process's view of all of them: `rank` of `world_size`, `local_rank` on its machine. Made by `joined`."""

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
            raise ValueError(f"{world_size} processes need a store to meet at")
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._store = store
        self._time_limit = time_limit
        self._meetings = itertools.count()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that decides, prints and merges."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"

    def device(self, name: str) -> str:
        """The device of this process where the user named `name`: of "cuda" and "auto" the GPU of its local rank.

        Raises:
            LaunchError: one GPU was named for several processes.
        """
        if self.world_size == 1 or name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise LaunchError(f"--device {name} is one device for {self.world_size} processes; say cuda, or cpu")
        import torch

        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        if self.local_rank >= torch.cuda.device_count():
            raise LaunchError(
                f"{self}: this machine has {torch.cuda.device_count()} GPU(s), and this is its process number "
                f"{self.local_rank + 1}; start one process a GPU (torchrun --nproc-per-node), or say --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def wait(self) -> None:
        """Returns when all processes have come here.

        Raises:
            LaunchError: some did not within the time limit.
        """
        if self._store is None:
            return
        key = self._meeting()
        if self._store.add(key, 1) == self.world_size:
            self._store.set(f"{key}/all", "")
        self._await(self._store, f"{key}/all")

    def broadcast_result(self, decide: Callable[[], T]) -> T:
        """What `decide` gives in the main process, in all of them; the others do not call it. Plain JSON values.

        Raises:
            LaunchError: the main process did not decide within the time limit.
        """
        if self._store is None:
            return decide()
        key = self._meeting()
        if self.is_main:
            decided = decide()
            self._store.set(key, json.dumps(decided))
            return decided
        self._await(self._store, key)
        return json.loads(self._store.get(key))

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, by rank, in all of them. Plain JSON values.

        Raises:
            LaunchError: some process gave none within the time limit.
        """
        if self._store is None:
            return [value]
        key = self._meeting()
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        for rank in range(self.world_size):
            self._await(self._store, f"{key}/{rank}")
        return [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(self.world_size)]

    def distribute(self, items: Sequence[T]) -> Iterator[T]:
        """Those of `items` that fall to this process: the next one to whoever asks for it, each to one process alone.

        `items` must be the same in all processes. What is computed for one must not depend on who computes it.
        """
        if self._store is None:
            yield from items
            return
        key = self._meeting()
        while (place := self._store.add(key, 1) - 1) < len(items):
            yield items[place]

    def aggregate_progress(self, advance: Advance) -> Advance:
        """An `Advance` for every process that tells the main one's `advance` of what all have done."""
        store = self._store
        if store is None:
            return advance
        key = self._meeting()
        told = 0

        def count(count: int = 1, /) -> None:
            nonlocal told
            total = store.add(key, count)
            if self.is_main:
                advance(total - told)
                told = total

        return count

    def _meeting(self) -> str:
        """The key of the next meeting, the same in all processes as long as they make the same calls."""
        return f"sam4mllm/{next(self._meetings)}"

    def _await(self, store: Store, key: str) -> None:
        from torch.distributed import DistError

        try:
            store.wait([key], self._time_limit)
        except DistError as error:
            raise LaunchError(
                f"{self} waited {self._time_limit} for the others in vain: one of them has stopped or hangs; start the "
                "job again, it goes on where it was"
            ) from error


SINGLE_PROCESS = DistributedContext()
"""The one process of a job that nobody launched in several."""


@contextmanager
def join_processes(time_limit: timedelta = TIME_LIMIT) -> Iterator[DistributedContext]:
    """The processes of this job, as the launcher's environment variables tell, when all are there.

    Left without an error, it waits until all have got here, for one of them may hold the store.

    Raises:
        LaunchError: variables that contradict each other; fewer processes than the launcher was asked for.
    """
    world_size = _asked_for()
    if world_size == 1:
        yield DistributedContext()
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
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
    processes.wait()
    yield processes
    processes.wait()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if store.add("sam4mllm/left", 1) == world_size:
        store.set("sam4mllm/all left", "")
    if processes.is_main:
        # It may be the one that holds the store, which the others need up to their last call.
        processes._await(store, "sam4mllm/all left")


def _asked_for() -> int:
    """How many processes the launcher says that there are.

    Raises:
        LaunchError: a launcher that was asked for several and started one, or set only some of the variables.
    """
    if "WORLD_SIZE" not in os.environ:
        # `accelerate launch --cpu --num_processes 2` sets an address to meet at, and then starts a single process.
        if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            raise LaunchError(
                "accelerate launch was asked for several processes and started one; on a CPU use "
                "`torchrun --nproc-per-node N -m sam4mllm ...`, on GPUs add --multi_gpu"
            )
        return 1
    world_size = _number("WORLD_SIZE")
    missing = [name for name in _VARIABLES if name not in os.environ]
    if world_size > 1 and missing:
        raise LaunchError(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set; start the job by torchrun")
    return max(world_size, 1)


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise LaunchError(f"the environment variable {name} is no number: {text!r}; start the job by torchrun")
    return int(text)
