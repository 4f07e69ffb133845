"""Helpers for tests of several processes: a job's data, the launchers, and processes simulated by threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sam4mllm.utils.distributed import DistributedContext
from tests.data.tiny_datasets import ref
from tests.tiny_home import write_tiny_home

ROOT = Path(__file__).parents[1]

RECIPE = """
output: unused
model: {{base: {home}/base}}
segmenter: {{checkpoint: {home}/sam.pth}}
data:
  train: [{{dataset: refcoco, root: {home}/data, split: train}}]
  validation: {{dataset: refcoco, root: {home}/data, split: val}}
method: {{phrases: 1}}
targets: {{groups: 4}}
lora: {{r: 4}}
training:
  max_steps: 6
  learning_rate: 1e-2
  logging_steps: 1
  save_steps: 4
  validate: {{every_steps: 3, samples: 5, batch_size: 2}}
generation: {{max_new_tokens: 4}}
"""


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a command by torchrun; every process has one OpenMP thread, as torchrun sets it."""
    return _launch("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments)


def accelerate_launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command by accelerate launch in two processes; `--multi_gpu` makes it start them on a CPU, too."""
    return _launch("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *arguments)


def _launch(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", *command]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)


def write_home(folder: Path) -> Path:
    """Write six training and three validation images with two phrases each, a tiny MLLM and a tiny SAM."""
    refs = [
        ref(n, 10 * n, n, "train" if n < 7 else "val", "thing " + "x" * n, f"the {n}th thing that is")
        for n in range(1, 10)
    ]
    return write_tiny_home(folder, RECIPE, refs)


def in_threads(count: int, work: Callable[[DistributedContext], Any], **settings: Any) -> list[Any]:
    """Run `work` in `count` threads, each with a rank and all with one store, and return the results by rank."""
    from torch.distributed import HashStore

    store = HashStore()
    with ThreadPoolExecutor(count) as pool:
        running = [
            pool.submit(work, DistributedContext(rank, count, rank, store=store, **settings)) for rank in range(count)
        ]
        return [future.result() for future in running]
