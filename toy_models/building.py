"""What the build scripts share: their options, two weight-decay groups, checkpoints whole or not at all, a JSON log.

This module knows no model and no data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam4mllm.utils.atomic_io import atomic_path


def build_options(description: str | None, *, steps: int, batch: int, learning_rate: float) -> argparse.ArgumentParser:
    """The options of every build script, with its own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch, help="scenes a step")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="the highest one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def begin(options: argparse.Namespace) -> None:
    """Seed torch, take the threads and make the work folder."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.work.mkdir(parents=True, exist_ok=True)


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW that lets matrices decay, and vectors (biases, norms) not."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas)


def learning_rate(step: int, steps: int, peak: float, *, warm: int, falling: float, first_step: int = 0) -> float:
    """Linear up over `warm` steps from `first_step`, then `peak`, then linear to zero over the last share `falling`."""
    rising = min(1.0, (step + 1 - first_step) / warm)
    return peak * rising * min(1.0, max((steps - step) / (falling * steps), 0.0))


class Checkpoint:
    """The newest state of a build, in one file that is there whole or not at all."""

    def __init__(self, place: Path, parts: Mapping[str, Any]) -> None:
        """`parts` have `state_dict` and `load_state_dict`."""
        self._place = place
        self._parts = parts

    def load(self) -> int:
        """The step to go on from, with the parts brought to it; 0 where there is nothing yet."""
        if not self._place.exists():
            return 0
        state = torch.load(self._place, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int) -> None:
        with atomic_path(self._place) as unfinished:
            torch.save({"step": step, **{name: part.state_dict() for name, part in self._parts.items()}}, unfinished)


class Log:
    """One JSON line a report, with the means of what was counted since the last one, at once on the disk."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "log.jsonl").open("a")
        self._began = time.time()
        self._sums: dict[str, float] = {}
        self._counted = 0

    def count(self, parts: Mapping[str, Tensor]) -> None:
        self._counted += 1
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())

    def report(self, step: int, **more: Any) -> None:
        means = {name: round(total / self._counted, 4) for name, total in self._sums.items()}
        line = {"step": step, "seconds": round(time.time() - self._began, 1), **means, **more}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._sums, self._counted = {}, 0
