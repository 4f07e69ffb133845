"""Training of locations on a CPU, in the processes that torchrun started.

torchrun --nproc-per-node 2 tests/training/located_job.py FOLDER BASE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sam4mllm.utils.distributed import join_processes
from tests.training.located import fit_located
from tests.training.test_located_trainer import TWICE, mixed_conversations, sizes

if __name__ == "__main__":
    folder, base = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    with join_processes() as processes:
        options = (*TWICE, *sizes(1, 1))
        fit_located(folder, base, *options, conversations=mixed_conversations(), processes=processes)
