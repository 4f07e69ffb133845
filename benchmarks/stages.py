"""Measure a stage of the package on one device: its time, torch's peak memory, and how busy the GPU is."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timing import now
from transformers import TrainerCallback

WARM_UP = 3
"""Steps, and batches of queries, that are not timed."""


@dataclass
class Stage:
    """The time of a stage, and the number of items done in it.

    Without a GPU, `memory` (bytes) and `busy` (the share of time in which a kernel ran) are None.
    """

    seconds: float = 0.0
    done: int = 0
    memory: int | None = None
    busy: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {"seconds": self.seconds, "done": self.done, "a_second": self.done / self.seconds} | {
            "peak_bytes": self.memory,
            "gpu_busy": self.busy,
            **self.extra,
        }


@contextmanager
def measured(device: str, *, timed: bool = True) -> Iterator[Stage]:
    """Measure the block's peak memory and, if `timed`, its time and how busy the GPU is."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    stage, utilization = Stage(), Utilization(device) if timed else None
    start = now(device)
    try:
        yield stage
    finally:
        end, busy = now(device), utilization.stop() if utilization else None
    if timed:
        stage.seconds, stage.busy = end - start, busy
    if device.startswith("cuda"):
        stage.memory = torch.cuda.max_memory_allocated(device)


class Utilization:
    """Samples of a GPU's utilization by nvidia-smi, if there is one, from the creation of the object to `stop`."""

    def __init__(self, device: str) -> None:
        self._process: subprocess.Popen[str] | None = None
        if device.startswith("cuda") and shutil.which("nvidia-smi"):
            # nvidia-smi counts all GPUs, torch those of CUDA_VISIBLE_DEVICES.
            uuid = torch.cuda.get_device_properties(device).uuid
            options = [
                f"--id=GPU-{uuid}",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "100",
            ]
            self._process = subprocess.Popen(["nvidia-smi", *options], stdout=subprocess.PIPE, text=True)

    def stop(self) -> float | None:
        """End the sampling and return the mean share of time in which a kernel ran; None without samples."""
        if self._process is None:
            return None
        self._process.terminate()
        samples = [float(line) for line in self._process.communicate()[0].splitlines() if line.strip().isdigit()]
        return statistics.mean(samples) / 100 if samples else None


class Clock(TrainerCallback):
    """The times at which the warm-up and the last step ended, and the share of time between them with a busy GPU."""

    def __init__(self, device: str, last_step: int) -> None:
        self._device = device
        self._last_step = last_step
        self._utilization: Utilization | None = None
        self.start = self.end = 0.0
        self.busy: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self._utilization = Utilization(self._device)
            self.start = now(self._device)
        if state.global_step == self._last_step and self._utilization is not None:
            self.end = now(self._device)
            self.busy = self._utilization.stop()
