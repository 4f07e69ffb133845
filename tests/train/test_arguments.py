"""What transformers sets up against what was asked for."""

from types import SimpleNamespace

import pytest
import torch

from sam4mllm.errors import LaunchError
from sam4mllm.train.arguments import check_launch
from sam4mllm.utils.distributed import SINGLE_PROCESS


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0"])
def test_the_device_that_transformers_trains_on(device):
    check_launch(
        SimpleNamespace(world_size=1, device=torch.device("cuda:0"), deepspeed_plugin=None), device, SINGLE_PROCESS
    )


def test_another_gpu_than_transformers_trains_on():
    with pytest.raises(LaunchError, match=r"--device cuda:1: .* CUDA_VISIBLE_DEVICES=1"):
        check_launch(
            SimpleNamespace(world_size=1, device=torch.device("cuda:0"), deepspeed_plugin=None),
            "cuda:1",
            SINGLE_PROCESS,
        )


def test_another_number_of_processes_than_were_launched():
    with pytest.raises(LaunchError, match=r"1 process\(es\) were launched, but the trainer runs in 2"):
        check_launch(SimpleNamespace(world_size=2, device=torch.device("cpu")), "cpu", SINGLE_PROCESS)
