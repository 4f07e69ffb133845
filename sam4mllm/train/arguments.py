"""transformers' TrainingArguments from a recipe: our defaults, what a run decides by itself, and what is refused early.

This module trains nothing and loads no model.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.train.sharding import check_deepspeed, check_fsdp
from sam4mllm.utils.distributed import DistributedContext

RESERVED = {
    "remove_unused_columns": "conversations have no columns; leave it out",
    "resume_from_checkpoint": "a run resumes by itself; leave it out",
    "eval_strategy": "training is validated by generating; set training.validate",
    "eval_on_start": "training is validated by generating; set training.validate",
    "train_sampling_strategy": "the seed decides the order of the data; leave it out",
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
    from transformers.integrations import get_reporting_integration_callbacks

    chosen = recipe.training.arguments
    reserved = [f"training.{key}: {RESERVED[key]}" for key in chosen if key in RESERVED]
    if reserved:
        raise RecipeError("\n".join(reserved))
    _check_extras(recipe)
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
        # The trainer makes these, too, but only when the model is loaded.
        for report in get_reporting_integration_callbacks(arguments.report_to):
            report()
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        raise RecipeError(f"training: transformers refuses these settings: {error}") from error
    if arguments.save_strategy == "best":
        raise RecipeError("training.save_strategy: the best adapter by validation is kept by itself; leave it out")
    check_fsdp(arguments, device)
    least = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    low = [name for name, bound in least.items() if getattr(arguments, name) < bound]
    if low:
        raise RecipeError("\n".join(f"training.{name}: got {getattr(arguments, name)}; raise it" for name in low))
    return arguments


def _check_extras(recipe: Recipe) -> None:
    """What is asked for and not installed, which would be found out when the targets are made and the model is loaded.

    Raises:
        RecipeError: DeepSpeed, or bitsandbytes for a quantised base or its optimisers.
    """
    training = recipe.training.arguments
    in_eight_bits = any(word in str(training.get("optim", "")) for word in ("8bit", "bnb", "paged"))
    asked = {
        "training.deepspeed": ("deepspeed", "deepspeed", bool(training.get("deepspeed"))),
        "training.optim": ("bitsandbytes", "quantization", in_eight_bits),
        "model.quantization": ("bitsandbytes", "quantization", recipe.model.quantization is not None),
    }
    missing = [
        f"{key}: {package} is not installed; pip install 'sam4mllm[{extra}]', or leave it out"
        for key, (package, extra, is_asked) in asked.items()
        if is_asked and importlib.util.find_spec(package) is None
    ]
    if missing:
        raise RecipeError("\n".join(missing))


def check_launch(arguments: Any, device: str, processes: DistributedContext) -> None:
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
