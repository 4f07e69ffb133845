"""transformers' TrainingArguments from a recipe: our defaults, what a run decides by itself, and what is refused early.

This module trains nothing and loads no model.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.processes import Processes
from sam4mllm.recipe import Recipe
from sam4mllm.train.run_folder import RunFolder
from sam4mllm.train.spread import check_deepspeed, check_fsdp

RESERVED = {
    "remove_unused_columns": "conversations have no columns; leave it out",
    "resume_from_checkpoint": "a run resumes by itself; leave it out",
    "eval_strategy": "training is validated by generating; set training.validate",
    "load_best_model_at_end": "the best adapter by validation is kept by itself; leave it out",
    "save_only_model": "a resume needs the optimiser's moments; leave it out",
    "ignore_data_skip": "a resume keeps the order of the data; leave it out",
}
"""Keys of TrainingArguments that a run decides, and what to do instead."""


def training_arguments(recipe: Recipe, device: str) -> Any:
    """transformers.TrainingArguments of the recipe's `training` section on `device`, with our defaults under it.

    Raises:
        RecipeError: a reserved key, or a value that transformers refuses or would only stumble over later.
    """
    from transformers import TrainingArguments

    chosen = recipe.training.arguments
    reserved = [f"training.{key}: {RESERVED[key]}" for key in chosen if key in RESERVED]
    if reserved:
        raise RecipeError("\n".join(reserved))
    if chosen.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise RecipeError("training.deepspeed: it is not installed; pip install 'sam4mllm[deepspeed]', or leave it out")
    on_cpu = device == "cpu"
    defaults = {
        "report_to": "none",
        "logging_steps": 10,
        "save_total_limit": 2,
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
    }
    fixed = {
        "output_dir": str(RunFolder(recipe.output).checkpoints),
        "seed": recipe.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "eval_strategy": "no",
    }
    try:
        arguments = TrainingArguments(**{**defaults, **chosen, **fixed})
        # Several GPUs are for several processes; left alone, the trainer would split each batch over all that it sees.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise RecipeError(f"training: transformers refuses these settings: {error}") from error
    check_fsdp(arguments, device)
    least = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    low = [name for name, bound in least.items() if getattr(arguments, name) < bound]
    if low:
        raise RecipeError("\n".join(f"training.{name}: got {getattr(arguments, name)}; raise it" for name in low))
    return arguments


def check_launch(arguments: Any, device: str, processes: Processes) -> None:
    """What the launcher and the user said against what torch.distributed and transformers have set up.

    Raises:
        LaunchError: another device or number of processes than the trainer has, or DeepSpeed without a launcher.
        RecipeError: settings of DeepSpeed that would save no adapter.
    """
    number = device.partition(":")[2]
    if number and int(number) != arguments.device.index:
        # transformers trains on the first GPU that it sees, whatever the model is on.
        raise LaunchError(f"--device {device}: to train on that GPU, set CUDA_VISIBLE_DEVICES={number} and say cuda")
    if arguments.world_size != processes.world_size:
        raise LaunchError(
            f"{processes.world_size} process(es) were launched, but the trainer runs in {arguments.world_size}; "
            "start the job by `torchrun --nproc-per-node N -m sam4mllm train ...`"
        )
    check_deepspeed(arguments)
