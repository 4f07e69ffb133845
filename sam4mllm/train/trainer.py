"""Training: a recipe becomes a run folder, by transformers' Trainer and peft, with nothing but the next-token loss.

A run that is stopped anywhere goes on from its last whole checkpoint to the same adapter: the moments of the optimiser,
the learning rate's schedule, the order of the data and the random numbers are all restored. Several processes train one
adapter together; what is written, the main one writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import PromptTarget
from sam4mllm.methods.registry import Method
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.train.arguments import check_launch, training_arguments
from sam4mllm.train.sharding import join_deepspeed, weights_are_spread
from sam4mllm.train.validation import Validation
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe | str | Path,
    *,
    device: str = "auto",
    callbacks: Sequence[Any] = (),
    processes: DistributedContext = SINGLE_PROCESS,
) -> RunFolder:
    """Train a recipe to the end and return its run folder.

    An interrupted training is resumed from its last complete checkpoint; a finished run is returned unchanged.

    Args:
        recipe: a recipe, or the path or name that `load_recipe` takes.
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes "cuda" is the GPU of the local rank.
        callbacks: further transformers `TrainerCallback`s.
        processes: the processes that train together.

    Raises:
        RecipeError: settings that contradict each other, or a run folder of another recipe.
        DataError, ModelError: data or models that cannot be read.
        LaunchError: the trainer sees another number of processes than were launched.
    """
    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.methods.of_recipe import reads_targets
    from sam4mllm.mllm.loading import load_mllm
    from sam4mllm.mllm.lora import attach_lora
    from sam4mllm.segmenters.loading import load_segmenter
    from sam4mllm.targets.filter import select_targets
    from sam4mllm.targets.prepare import compute_targets
    from sam4mllm.targets.settings import TargetSettings
    from sam4mllm.train.dataset import make_training_set, spread
    from sam4mllm.train.prepare import resolve_recipe
    from sam4mllm.utils.device import resolve_device

    recipe = resolve_recipe(recipe)
    device = resolve_device(processes.device(device))
    # Before the folder is made: a setting that is refused must not leave a run behind.
    check_launch(training_arguments(recipe, device), device, processes)
    finished = processes.broadcast_result(lambda: _start(recipe).is_finished)
    run = RunFolder(recipe.output)
    mixture = read_mixture(recipe.data, recipe.seed)
    processes.broadcast_result(lambda: run.record_data_digest(mixture.digest(), is_finished=finished))
    if finished:
        logger.info("%s: trained already", run.path)
        return run
    if processes.is_main:
        run.keep_leakage(mixture.leakage())
    for line in mixture.leakage_lines():
        logger.info("%s", line)
    validated_on = held_out(recipe)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    targets: Mapping[str, PromptTarget] = {}
    if reads_targets(recipe):
        settings = TargetSettings.from_recipe(recipe)
        store = compute_targets(mixture.samples, segmenter, settings, recipe.targets.store, processes)
        targets = select_targets(store.read(), only_winning=recipe.targets.only_winning)
    lessons = make_training_set(mixture, targets, run.method)
    logger.info(
        "%d phrases and %d chats in %d conversations", lessons.phrases, lessons.chats, len(lessons.conversations)
    )
    if mixture.doubled or lessons.without_target:
        logger.info(
            "left out: %d phrases that come twice, %d with an object that has no target",
            mixture.doubled,
            lessons.without_target,
        )

    # Made before the model is loaded, and held: DeepSpeed ZeRO-3 spreads the weights out while they are read.
    arguments = training_arguments(recipe, device)
    join_deepspeed(arguments)
    # FSDP is for models that no one GPU holds whole; quantised weights are made on the GPU.
    on_host = arguments.fsdp and recipe.model.quantization is None
    mllm = load_mllm(
        recipe.model.base,
        device="cpu" if on_host else device,
        dtype=recipe.model.dtype,
        quantization=recipe.model.quantization,
        attn_implementation=recipe.model.attn_implementation,
        image_size=recipe.model.image_size,
    )
    mllm = attach_lora(mllm, recipe.lora, recipe.seed, tune_projector=recipe.model.tune_projector)
    validate = None
    if validated_on and recipe.data.validation is not None:
        chosen = spread(validated_on, recipe.training.validation.samples)
        # Weights that are spread out are gathered at every step of generation, so all processes must go the same way.
        sharing = SINGLE_PROCESS if weights_are_spread(arguments) else processes
        validate = _validation(recipe, run.method, mllm, segmenter, chosen, recipe.data.validation.name, sharing)
    fit(
        mllm,
        lessons.conversations,
        recipe,
        run,
        validate=validate,
        callbacks=callbacks,
        processes=processes,
        arguments=arguments,
    )
    return run


def fit(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    recipe: Recipe,
    run: RunFolder,
    *,
    validate: Callable[[], Validation] | None = None,
    callbacks: Sequence[Any] = (),
    processes: DistributedContext = SINGLE_PROCESS,
    arguments: Any = None,
) -> None:
    """Train the adapter on `mllm` with `conversations`, and write it to `run` when done.

    `arguments` are the recipe's `training_arguments`, where they were made already.

    Raises:
        RecipeError: `training` holds a key that is not the recipe's to set, or a value that transformers refuses; the
            run was begun by another number of processes, or with other conversations.
    """
    from transformers import PrinterCallback, Trainer

    from sam4mllm.train.callbacks import DisableVisionInputGrads, LogCallback, ValidationCallback
    from sam4mllm.train.collator import Collator
    from sam4mllm.train.dataset import digest
    from sam4mllm.train.estimate import conversations_per_step, steps

    if arguments is None:
        arguments = training_arguments(recipe, mllm.device.type)
    spread_out = weights_are_spread(arguments)

    def weights() -> dict[str, Any] | None:
        """What the model's weights are when they are put together, where the processes hold a part of each."""
        return trainer.accelerator.get_state_dict(trainer.model_wrapped) if spread_out else None

    validation = None
    if validate is not None:
        every_steps = recipe.training.validation.every_steps
        validation = ValidationCallback(run, validate, every_steps, processes, weights)
    trainer = Trainer(
        model=mllm.model,
        args=arguments,
        train_dataset=list(conversations),
        data_collator=Collator(mllm),
        callbacks=[DisableVisionInputGrads(), LogCallback(run), *([validation] if validation else []), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)

    epoch, whole = steps(len(conversations), arguments)
    together = conversations_per_step(arguments)
    logger.info("%d conversations a step, %d steps an epoch, %d steps in all", together, epoch, whole)
    processes.broadcast_result(lambda: run.check_resumable(digest(conversations)))
    found, step, last_step = processes.broadcast_result(lambda: _rewound(run, processes.world_size, unended=spread_out))
    checkpoint = run.checkpoints / found if found else None
    if checkpoint is not None and step >= last_step:
        # The trainer, resumed at its last step, would take one more.
        _load_adapter(mllm.model, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
    if validation is not None:
        validation.validate_at(step, mllm.model)
    if (best := run.best()) is not None:
        logger.info("kept the adapter of step %d, cIoU %.1f %%", best[0], 100 * best[1])
    put_together = weights()
    if processes.is_main:
        run.finish(mllm.model, mllm.processor, put_together)
    processes.wait()


def held_out(recipe: Recipe) -> list[Sample]:
    """The samples that the run is validated on.

    Raises:
        DataError: one of them has boxes and no masks, which the validation's figures are about.
    """
    from sam4mllm.data.registry import read_with_masks

    return [] if recipe.data.validation is None else read_with_masks(recipe.data.validation)


def _start(recipe: Recipe) -> RunFolder:
    """The run folder, in which it is settled how this run teaches and asks."""
    from sam4mllm.methods.of_recipe import method_of

    # The method first, because it may be refused, and what is refused leaves no folder.
    method = None if RunFolder(recipe.output).is_started else method_of(recipe)
    return RunFolder.create(recipe, method)


def _validation(
    recipe: Recipe,
    method: Method,
    mllm: Mllm,
    segmenter: Any,
    samples: Sequence[Any],
    name: str,
    processes: DistributedContext,
) -> Callable[[], Validation]:
    """The validation of `mllm` as it stands when called, on `samples` of the split `name`."""
    from sam4mllm.mllm.transformers_engine import TransformersEngine
    from sam4mllm.pipeline.loading import box_fallback
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.train.validation import validate

    batch_size = recipe.training.validation.batch_size
    pipeline = Pipeline(
        method,
        TransformersEngine(mllm, batch_size),
        segmenter,
        max_new_tokens=recipe.generation.max_new_tokens,
        image_batch=batch_size,
        fallback=box_fallback(recipe.segmenter),
    )
    return lambda: validate(pipeline, samples, name, processes)


def _rewound(run: RunFolder, world_size: int, *, unended: bool) -> tuple[str | None, int, int]:
    """The checkpoint to go on from, its step and its training's last step, with what came after it forgotten.

    (None, 0, 1) before the first. With `unended`, a checkpoint of the last step does not count: weights that are spread
    out come to their processes only when training begins.

    Raises:
        RecipeError: the checkpoints were written by another number of processes.
    """
    found: tuple[str | None, int, int] = (None, 0, 1)
    for checkpoint in run.whole_checkpoints(world_size):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        step, last_step = state["global_step"], state["max_steps"]
        if not (unended and step >= last_step):
            found = (checkpoint.name, step, last_step)
            break
    run.rewind(found[1])
    return found


def _load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
