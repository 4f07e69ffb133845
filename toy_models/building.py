"""Shared parts of the build scripts: options, optimizer, learning rate, processes, atomic checkpoints, a JSON log."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sam4mllm.utils.atomic_io import atomic_path


def build_options(description: str | None, *, steps: int, batch: int, learning_rate: float) -> argparse.ArgumentParser:
    """Return a parser with the options of all build scripts and the given defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch, help="scenes per step")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="the peak of the schedule")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def begin(options: argparse.Namespace) -> None:
    """Seed torch, set its number of threads and create the work folder."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.work.mkdir(parents=True, exist_ok=True)


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices and without it on vectors (biases, norms)."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas)


def learning_rate(step: int, progress: float, peak: float, *, warm: int, falling: float) -> float:
    """Return the rate of a step of a stage: linear to `peak` over `warm` steps, then to 0 over its last part.

    `progress` (0 to 1) is the share of the stage that is done, and `falling` the share over which the rate falls.
    """
    return peak * min(1.0, (step + 1) / warm) * min(1.0, max((1 - progress) / falling, 0.0))


class Ranks:
    """The processes that `torchrun` started, which average their gradients; one process without it."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1:
            dist.init_process_group("gloo")

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors by their means over the processes."""
        if self.count > 1:
            each = list(tensors)
            flat = torch.cat([tensor.flatten() for tensor in each])
            dist.all_reduce(flat)
            for tensor, part in zip(each, (flat / self.count).split([t.numel() for t in each]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, condition: bool) -> bool:
        """Return whether the condition is true in any process."""
        votes = torch.tensor(float(condition))
        if self.count > 1:
            dist.all_reduce(votes)
        return bool(votes > 0)


class Checkpoint:
    """The latest state of a build, in one file that is written atomically."""

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        """Keep the state of `parts`, which have `state_dict` and `load_state_dict`, in the file `path`."""
        self._path = path
        self._parts = parts

    def load(self) -> int:
        """Load the parts and return the step to resume from; 0 without a checkpoint."""
        if not self._path.exists():
            return 0
        state = torch.load(self._path, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Save the parts after `step` steps."""
        with atomic_path(self._path) as temporary:
            torch.save({"step": step, **{name: part.state_dict() for name, part in self._parts.items()}}, temporary)


class Log:
    """A log with one JSON line per report: the means of the losses since the last report."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "log.jsonl").open("a")
        self._start = time.time()
        self._sums: dict[str, Tensor] = {}
        self._counted = 0

    def count(self, parts: Mapping[str, Tensor]) -> None:
        """Add the losses of one step."""
        self._counted += 1
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()

    def report(self, step: int, **more: Any) -> None:
        """Write the means of the losses, and `more`, as a line; flush the file."""
        means = {name: round(float(total) / self._counted, 4) for name, total in self._sums.items()}
        line = {"step": step, "seconds": round(time.time() - self._start, 1), **means, **more}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._sums, self._counted = {}, 0
