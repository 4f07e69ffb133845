"""Sharded weights, under FSDP and DeepSpeed's ZeRO-3: who holds a part of them only, and what must be set for it.

This module loads no model; the libraries do the spreading.
"""

from __future__ import annotations

import os
from typing import Any

from sam4mllm.errors import LaunchError, RecipeError

_GATHERED_TO_SAVE = "stage3_gather_16bit_weights_on_model_save"


def weights_are_spread(arguments: Any) -> bool:
    """Whether each process holds but a part of the model's weights: under FSDP, and DeepSpeed's ZeRO-3.

    Either may also be asked for by `accelerate launch`, which says so by an environment variable.
    """
    fsdp = arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(fsdp) or _is_zero3(arguments.deepspeed_plugin)


def check_fsdp(arguments: Any, device: str) -> None:
    """FSDP on a CPU, which accelerate would leave out without a word.

    Raises:
        RecipeError: it was asked for.
    """
    if arguments.fsdp and device == "cpu":
        raise RecipeError("training.fsdp: FSDP needs GPUs; leave it out, or train with --device cuda")


def check_deepspeed(arguments: Any) -> None:
    """What DeepSpeed would only stumble over when the model is loaded, or at the first checkpoint.

    Raises:
        LaunchError: nothing launched this process, so DeepSpeed cannot know of the others.
        RecipeError: ZeRO-3 that is not told to put weights together to save them.
    """
    plugin = arguments.deepspeed_plugin
    if plugin is None:
        return
    if "RANK" not in os.environ:
        raise LaunchError(
            "training.deepspeed: DeepSpeed wants a launcher for a single process, too; "
            "start the job by `torchrun --nproc-per-node 1 -m sam4mllm train ...`"
        )
    if _is_zero3(plugin) and not plugin.get_value(f"zero_optimization.{_GATHERED_TO_SAVE}", False):
        raise RecipeError(
            "training.deepspeed: ZeRO-3 leaves a part of the adapter with each process, and would save none of it; "
            f"set zero_optimization.{_GATHERED_TO_SAVE}: true"
        )


def join_deepspeed(arguments: Any) -> None:
    """Let DeepSpeed know of all processes before the model is loaded, which is when ZeRO-3 spreads its weights.

    On GPUs accelerate has done so by now; on a CPU it sets up torch's process group alone.
    """
    if arguments.deepspeed_plugin is None:
        return
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(auto_mpi_discovery=False)


def _is_zero3(plugin: Any) -> bool:
    return plugin is not None and plugin.zero_stage == 3
