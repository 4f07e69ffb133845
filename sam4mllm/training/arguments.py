"""transformers' TrainingArguments from a recipe, and early checks of device, launcher, FSDP and DeepSpeed.

Settings are checked before any data are read or models loaded, so that a job that cannot work fails at once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from sam4mllm.data.mixture import Mixture
from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.methods.registry import plain_method
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.utils.distributed import DistributedContext

RESERVED = {
    "remove_unused_columns": "conversations have no columns; leave it out",
    "resume_from_checkpoint": "a run resumes automatically; leave it out",
    "eval_strategy": "training is validated by generating; set training.validate",
    "eval_on_start": "training is validated by generating; set training.validate",
    "load_best_model_at_end": "the best adapter by validation is kept automatically; leave it out",
    "save_only_model": "resuming needs the optimizer states; leave it out",
    "ignore_data_skip": "resuming keeps the order of the data; leave it out",
}
"""Keys of TrainingArguments that a recipe may not set, and what to do instead."""

GROUP_BY_LENGTH = "group_by_length"
"""The value of `train_sampling_strategy` with which batches have rows of similar lengths."""

_LOADER_PROCESSES = 4
"""Processes that make batches for each GPU, at most, by default."""

_SHARED_MEMORY = Path("/dev/shm")
_ENOUGH_SHARED_MEMORY = 2**30
"""Bytes of shared memory, by which these processes pass on their batches; containers have 64 MB by default."""

_GATHER_TO_SAVE = "stage3_gather_16bit_weights_on_model_save"


def training_arguments(recipe: Recipe, device: str) -> Any:
    """Build transformers.TrainingArguments from the recipe's `training` section and our defaults.

    Raises:
        RecipeError: A key is reserved, or transformers refuses a value or would fail with it later.
    """
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    chosen = recipe.training.arguments
    reserved = [f"training.{key}: {RESERVED[key]}" for key in chosen if key in RESERVED]
    if reserved:
        raise RecipeError("\n".join(reserved))
    _check_packages(recipe)
    on_cpu = device == "cpu"
    defaults = {
        "report_to": "none",
        "logging_steps": 10,
        "save_total_limit": 2,
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        # Other processes make the next batches while a GPU computes; on a CPU they would compete with it.
        "dataloader_num_workers": 0 if on_cpu else loader_processes(),
    }
    fixed = {
        "output_dir": str(RunFolder(recipe.output).checkpoints.folder),
        "seed": recipe.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "eval_strategy": "no",
    }
    try:
        arguments = TrainingArguments(**{**defaults, **chosen, **fixed})
        # One process uses one GPU; by default the trainer would split each batch over all GPUs that are visible.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        # The trainer creates these again, but only after the model is loaded: a missing package should fail now.
        for integration in get_reporting_integration_callbacks(arguments.report_to):
            integration()
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        raise RecipeError(f"training: transformers refuses these settings: {error}") from error
    if arguments.train_sampling_strategy not in ("random", GROUP_BY_LENGTH):
        raise RecipeError(
            f"training.train_sampling_strategy: is {arguments.train_sampling_strategy}; set random, or "
            f"{GROUP_BY_LENGTH} for batches with less padding"
        )
    if arguments.save_strategy == "best":
        raise RecipeError("training.save_strategy: the best adapter by validation is kept automatically; leave it out")
    check_fsdp(arguments, device)
    minima = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    too_low = [name for name, minimum in minima.items() if getattr(arguments, name) < minimum]
    if too_low:
        raise RecipeError(
            "\n".join(
                f"training.{name}: must be at least {minima[name]}; got {getattr(arguments, name)}" for name in too_low
            )
        )
    return arguments


def loader_processes() -> int:
    """Return the number of processes that make batches for one GPU: 0 where this one has to make them.

    The CPUs that this process may use are divided among the processes that a launcher started on this machine.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).total < _ENOUGH_SHARED_MEMORY:
        return 0
    return min(_LOADER_PROCESSES, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _check_packages(recipe: Recipe) -> None:
    """Check that the optional packages which the recipe's settings need are installed.

    Raises:
        RecipeError: DeepSpeed is missing, or bitsandbytes for a quantized base model or an 8-bit optimizer.
    """
    training = recipe.training.arguments
    optimizer_of_bitsandbytes = any(word in str(training.get("optim", "")) for word in ("8bit", "bnb", "paged"))
    needed = {
        "training.deepspeed": ("deepspeed", "deepspeed", bool(training.get("deepspeed"))),
        "training.optim": ("bitsandbytes", "quantization", optimizer_of_bitsandbytes),
        "model.quantization": ("bitsandbytes", "quantization", recipe.model.quantization is not None),
    }
    missing = [
        f"{key}: {package} is not installed; pip install 'sam4mllm[{extra}]', or leave it out"
        for key, (package, extra, is_set) in needed.items()
        if is_set and importlib.util.find_spec(package) is None
    ]
    if missing:
        raise RecipeError("\n".join(missing))


def check_launch(arguments: Any, device: str, processes: DistributedContext) -> None:
    """Check that transformers trains on the requested device and in the requested number of processes.

    Raises:
        LaunchError: The trainer has another device or number of processes, or DeepSpeed has no launcher.
        RecipeError: With the settings of DeepSpeed no adapter would be saved.
    """
    number = device.partition(":")[2]
    if number and int(number) != arguments.device.index:
        # transformers trains on the first visible GPU, wherever the model is.
        raise LaunchError(
            f"--device {device}: to train on that GPU, set CUDA_VISIBLE_DEVICES={number} and --device cuda"
        )
    if arguments.world_size != processes.world_size:
        raise LaunchError(
            f"{processes.world_size} process(es) were launched, but the trainer runs in {arguments.world_size}; "
            "start the job by `torchrun --nproc-per-node N -m sam4mllm train ...`"
        )
    check_deepspeed(arguments)


def weights_are_sharded(arguments: Any) -> bool:
    """Return whether each process holds only a part of the model's weights: under FSDP and under DeepSpeed's ZeRO-3.

    FSDP may also be set by `accelerate launch`, through an environment variable.
    """
    fsdp = arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(fsdp) or _is_zero3(arguments.deepspeed_plugin)


def check_text_only(arguments: Any, recipe: Recipe, mixture: Mixture, processes: DistributedContext) -> None:
    """Refuse chat without an image where processes would wait for each other's vision towers or projectors.

    Under FSDP and ZeRO-3 all processes gather each module's weights together, and under DeepSpeed they reduce the
    projector's gradients together; a process whose batch has no image runs neither vision tower nor projector.

    Raises:
        RecipeError: There is such chat, and several processes share weights or a tuned projector.
    """
    first = next((dialogue for dialogue in mixture.dialogues if dialogue.image is None), None)
    if first is None or processes.world_size == 1:
        return
    if weights_are_sharded(arguments) or (arguments.deepspeed_plugin is not None and recipe.model.tune_projector):
        setting = "deepspeed" if arguments.deepspeed_plugin is not None else "fsdp"
        raise RecipeError(
            f"data.train: {first.where}: chat without an image cannot be trained on with training.{setting} in several "
            "processes, which would wait for the vision tower of the others; leave such chat out, or set neither FSDP "
            "nor ZeRO-3, nor DeepSpeed with model.tune_projector"
        )


def check_locations(arguments: Any, recipe: Recipe) -> None:
    """Refuse location heads whose weights other libraries divide or cast.

    Under FSDP and ZeRO-3 each process holds a part of them, which is not tested. DeepSpeed casts all weights where it
    trains in bfloat16 or float16, but the heads compute in float32.

    Raises:
        RecipeError: FSDP or ZeRO-3 is set for a method with location heads, or DeepSpeed with bf16 or fp16 for a method
            with losses of locations.
    """
    from sam4mllm.training.location_losses import LocationWeights

    if weights_are_sharded(arguments) and plain_method(recipe).needs_locations:
        raise RecipeError(
            f"training: {recipe.method.name} cannot be trained under FSDP or ZeRO-3, which hold its location heads in "
            "parts; leave them out (processes of torchrun without them work), or train ppg"
        )
    is_half = arguments.bf16 or arguments.fp16
    if arguments.deepspeed_plugin is not None and is_half and LocationWeights.of(recipe.method) is not None:
        setting = recipe.method.name if plain_method(recipe).needs_locations else "method.box_loss"
        raise RecipeError(
            f"training.deepspeed: with bf16 or fp16 DeepSpeed casts all weights, but the box decoder of {setting} "
            "computes in float32; leave deepspeed out (processes of torchrun without it work), or bf16 and fp16"
        )


def added_tokens(recipe: Recipe) -> frozenset[str]:
    """Return the texts of the tokens that a recipe's method adds to the tokenizer, which no phrase or chat may hold."""
    return frozenset({LOCATION_TOKEN} if plain_method(recipe).needs_locations else ())


def location_settings(recipe: Recipe, segmenter: Segmenter | None = None) -> LocationSettings | None:
    """Return the settings of the location heads of a recipe's method; None for a method without.

    Prompt tokens have the segmenter's width and begin as its embedding of "not a point". Their width is left open where
    they are not used, or the segmenter is not loaded.

    Raises:
        ModelError: The segmenter takes no prompt tokens.
    """
    method = plain_method(recipe)
    if not method.needs_locations:
        return None
    if segmenter is None or not method.needs_prompt_tokens:
        return LocationSettings(recipe.method.sam_tokens)
    not_a_point = segmenter.not_a_point
    return LocationSettings(recipe.method.sam_tokens, len(not_a_point), not_a_point)


def check_fsdp(arguments: Any, device: str) -> None:
    """Refuse FSDP on a CPU, where accelerate would silently train without it.

    Raises:
        RecipeError: FSDP is set and the device is a CPU.
    """
    if arguments.fsdp and device == "cpu":
        raise RecipeError("training.fsdp: FSDP needs GPUs; leave it out, or train with --device cuda")


def check_deepspeed(arguments: Any) -> None:
    """Check settings with which DeepSpeed would fail when the model is loaded or the first checkpoint is saved.

    Raises:
        LaunchError: The process was started without a launcher.
        RecipeError: ZeRO-3 without the setting that gathers the weights to save them.
    """
    plugin = arguments.deepspeed_plugin
    if plugin is None:
        return
    if "RANK" not in os.environ:
        raise LaunchError(
            "training.deepspeed: DeepSpeed needs a launcher even for a single process; "
            "start the job by `torchrun --nproc-per-node 1 -m sam4mllm train ...`"
        )
    if _is_zero3(plugin) and not plugin.get_value(f"zero_optimization.{_GATHER_TO_SAVE}", False):
        raise RecipeError(
            "training.deepspeed: under ZeRO-3 each process holds a part of the adapter, and none of it would be saved; "
            f"set zero_optimization.{_GATHER_TO_SAVE}: true"
        )


def join_deepspeed(arguments: Any) -> None:
    """Initialize DeepSpeed's communication before the model is loaded, because ZeRO-3 shards the weights on loading.

    On GPUs accelerate has done so already; on a CPU it sets up torch's process group only.
    """
    if arguments.deepspeed_plugin is None:
        return
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(auto_mpi_discovery=False)


def _is_zero3(plugin: Any) -> bool:
    """Return whether accelerate's DeepSpeed plugin, or None, is set to ZeRO stage 3."""
    return plugin is not None and plugin.zero_stage == 3
