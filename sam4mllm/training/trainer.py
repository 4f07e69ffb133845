"""The train stage: LoRA training with transformers' Trainer and peft, from a recipe to a run folder.

An interrupted run resumes from its last complete checkpoint and ends with the same adapter: the optimizer states, the
learning rate schedule, the order of the data and the random states are restored. Several processes train one adapter
together; only the main process writes files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam4mllm.data.mixture import Mixture, read_mixture
from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import Method, PromptTarget
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.mllm.families import Family
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.licenses import license_lines
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.arguments import (
    check_launch,
    check_locations,
    check_text_only,
    join_deepspeed,
    location_settings,
    training_arguments,
    weights_are_sharded,
)
from sam4mllm.training.data_check import check_images
from sam4mllm.training.dataset import TrainingSet, answer_digests, count_text, digest, make_training_set
from sam4mllm.training.estimate import optimizer_steps
from sam4mllm.training.prepare import resolve_recipe
from sam4mllm.training.resuming import load_adapter, rewind
from sam4mllm.training.template_check import check_template
from sam4mllm.training.trackers import Trackers
from sam4mllm.training.validation import Validation, make_validator, validation_samples
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe | str | Path,
    *,
    device: str = "auto",
    callbacks: Sequence[Any] = (),
    processes: DistributedContext = SINGLE_PROCESS,
) -> RunFolder:
    """Train a recipe to the end and return its run folder.

    An interrupted run is resumed from its last complete checkpoint; a finished run is returned unchanged.

    Args:
        recipe: A recipe, or the path or name that `load_recipe` takes.
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes "cuda" is the GPU of the local rank.
        callbacks: Further transformers `TrainerCallback`s.
        processes: The processes that train together.

    Raises:
        RecipeError: Settings contradict each other, or the run folder is that of another recipe.
        DataError, ModelError: Data or models cannot be read.
        TrainingError, DeviceMemoryError: See `CheckedTrainer`.
        LaunchError: The trainer has another number of processes than were launched, or another job is training in the
            run folder.
    """
    # 1. Check the settings and read the data before the run folder is created: a refused recipe must not leave one
    #    behind, because a corrected recipe would then be refused as another one.
    recipe = resolve_recipe(recipe)
    device = resolve_device(processes.device(device))
    arguments = training_arguments(recipe, device)
    check_launch(arguments, device, processes)
    check_locations(arguments, recipe)
    mixture = processes.compute_on_machine(lambda: read_mixture(recipe.data, recipe.seed))
    check_text_only(arguments, recipe, mixture, processes)
    is_finished = RunFolder(recipe.output).is_finished_for(recipe)
    held_out = processes.compute_on_machine(lambda: [] if is_finished else validation_samples(recipe))
    loaded = None
    if not is_finished:
        loaded = check_template(recipe, mixture, held_out)
        check_images([*mixture.items, *held_out], processes)
    with folder_lock(recipe.output, "training", subfolders=("checkpoints",), active=processes.is_main):
        return _train_in_folder(recipe, mixture, held_out, loaded, device, callbacks, processes)


def _train_in_folder(
    recipe: Recipe,
    mixture: Mixture,
    held_out: Sequence[Sample],
    loaded: tuple[Any, Family] | None,
    device: str,
    callbacks: Sequence[Any],
    processes: DistributedContext,
) -> RunFolder:
    """Train in the locked run folder, after the checks of `train`; `loaded` is what `check_template` returned."""
    # 2. Create or reopen the run folder.
    run, is_finished = _open_run(recipe, mixture, loaded, processes)
    if is_finished:
        logger.info("%s: the training has already finished", run.path)
        return run
    # 3. Compute the targets and make the conversations.
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    check_mask_loss(recipe, segmenter)
    conversations = _training_set(recipe, run.method, mixture, segmenter, processes).conversations
    # 4. Load the model. The arguments are created before and kept: under ZeRO-3 they shard the weights on loading.
    arguments = training_arguments(recipe, device)
    mllm = _load_model(recipe, arguments, device, segmenter, loaded)
    # 5. Train. Sharded weights are gathered at every step of generation, so all processes validate the same samples.
    sharing = SINGLE_PROCESS if weights_are_sharded(arguments) else processes
    validate = make_validator(recipe, run.method, mllm, segmenter, held_out, sharing)
    fit(
        mllm,
        conversations,
        recipe,
        run,
        validate=validate,
        callbacks=callbacks,
        processes=processes,
        arguments=arguments,
        segmenter=segmenter,
    )
    return run


def _open_run(
    recipe: Recipe, mixture: Mixture, loaded: tuple[Any, Family] | None, processes: DistributedContext
) -> tuple[RunFolder, bool]:
    """Create or reopen the run folder, record the data in it, and return it and whether its training has finished."""
    is_finished = processes.broadcast_result(lambda: _create_run(recipe, loaded).is_finished)
    run = RunFolder(recipe.output)
    processes.broadcast_result(lambda: run.checkpoints.record_data_digest(mixture.digest(), is_finished=is_finished))
    if not is_finished:
        if processes.is_main:
            run.write_leakage(mixture.leakage())
        for line in [*license_lines(recipe), *mixture.leakage_lines()]:
            logger.info("%s", line)
        for note in mixture.notes():
            logger.warning("note: %s", note)
    return run, is_finished


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
    segmenter: Segmenter | None = None,
) -> None:
    """Train the adapter on `mllm` with `conversations` and save it to `run`.

    `arguments` are the recipe's `training_arguments`; None makes them. The loss of masks, for methods that have it,
    uses the mask decoder of `segmenter`.

    Raises:
        RecipeError: `training` has a reserved key or a value that transformers refuses; or the run was started with
            another number of processes or other conversations.
    """
    from sam4mllm.training.callbacks import ValidationCallback
    from sam4mllm.training.setup import make_trainer

    arguments = training_arguments(recipe, mllm.device.type) if arguments is None else arguments
    is_sharded = weights_are_sharded(arguments)

    def gathered_weights() -> dict[str, Any] | None:
        """Gather the model's weights where they are sharded; all processes call this."""
        return trainer.accelerator.get_state_dict(trainer.model_wrapped) if is_sharded else None

    # 1. Set up the trainer.
    trackers, steps = Trackers(run), recipe.training.validation.every_steps
    options = (steps, processes, gathered_weights, trackers.report)
    validations = [ValidationCallback(run, validate, *options)] if validate is not None else []
    trainer = make_trainer(mllm, conversations, recipe, run, arguments, [*validations, *callbacks], segmenter)
    trackers.attach(trainer)
    # 2. Find the checkpoint to resume from.
    processes.broadcast_result(
        lambda: run.checkpoints.check_resumable(digest(conversations), answer_digests(conversations))
    )
    total = optimizer_steps(len(conversations), arguments)[1]
    name, step, last_step = processes.broadcast_result(
        lambda: rewind(run, processes.world_size, total, only_unfinished=is_sharded)
    )
    checkpoint = run.checkpoints.folder / name if name else None
    # 3. Train. Resumed at its last step, the trainer would take one step more, so the adapter is loaded instead.
    if checkpoint is not None and step >= last_step:
        load_adapter(mllm.model, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
    trainer.check_last_step(step, conversations[0])
    # 4. Validate the last step, and save the best adapter, or the last one without validation.
    for validation in validations:
        validation.validate_at(step, mllm.model)
    weights = gathered_weights()
    if processes.is_main:
        _finish(run, mllm, weights, trackers)
    processes.barrier()


def _finish(run: RunFolder, mllm: Mllm, weights: dict[str, Any] | None, trackers: Trackers) -> None:
    """Write the adapter to the run folder, log which one it is, and close the trackers."""
    if (best := run.checkpoints.best()) is not None:
        logger.info("kept the adapter of step %d, cIoU %.1f %%", best[0], 100 * best[1])
    run.finish(mllm.model, mllm.processor, weights)
    if run.calibration is not None and (note := run.calibration.note()):
        logger.info("note: %s", note)
    trackers.close()


def check_mask_loss(recipe: Recipe, segmenter: Segmenter) -> None:
    """Check, before the model is loaded, that the segmenter has the mask decoder that the method's losses use.

    Raises:
        ModelError: It does not.
    """
    from sam4mllm.segmenters.mask_decoder import require_segment_anything
    from sam4mllm.training.location_losses import LocationWeights

    weights = LocationWeights.of(recipe.method)
    if weights is not None and weights.mask:
        require_segment_anything(segmenter)


def _create_run(recipe: Recipe, loaded: tuple[Any, Family] | None) -> RunFolder:
    """Create the run folder, or reopen it; its method.json has the method's settings for training and inference."""
    # The method is built first, because it may be refused, and a refused recipe must not leave a folder behind.
    method = None if RunFolder(recipe.output).keeps_method(recipe) else method_of_recipe(recipe, loaded)
    return RunFolder.create(recipe, method)


def _training_set(
    recipe: Recipe, method: Method, mixture: Mixture, segmenter: Segmenter, processes: DistributedContext
) -> TrainingSet:
    """Compute the targets that the store lacks and make the conversations of one epoch; their counts are logged."""
    targets: Mapping[str, PromptTarget] = {}
    if method.needs_targets:
        settings = TargetSettings.from_recipe(recipe)
        store = compute_targets(mixture.samples, segmenter, settings, recipe.targets.store, processes)
        targets = store.read()
    training_set = make_training_set(mixture, targets, method)
    counts = count_text(training_set.phrases, training_set.regions, training_set.captions, training_set.chats)
    logger.info("%s in %d conversations", counts, len(training_set.conversations))
    if mixture.duplicates or training_set.without_target:
        logger.info(
            "left out: %d duplicate phrases, %d with an object that has no target",
            mixture.duplicates,
            training_set.without_target,
        )
    return training_set


def _load_model(
    recipe: Recipe,
    arguments: Any,
    device: str,
    segmenter: Segmenter,
    loaded: tuple[Any, Family] | None = None,
) -> Mllm:
    """Load the recipe's base model and attach a new adapter, with location heads where the method needs them."""
    join_deepspeed(arguments)
    # FSDP is for models that do not fit on one GPU, so they are loaded on the CPU; quantized weights are made on a GPU.
    on_cpu = arguments.fsdp and recipe.model.quantization is None
    mllm = load_mllm(
        recipe.model.base,
        device="cpu" if on_cpu else device,
        dtype=recipe.model.dtype,
        quantization=recipe.model.quantization,
        quantize_vision=recipe.model.quantize_vision,
        attn_implementation=recipe.model.attn_implementation,
        image_size=recipe.model.image_size,
        processor=None if loaded is None else loaded[0],
    )
    return attach_lora(
        mllm,
        recipe.lora,
        recipe.seed,
        tune_projector=recipe.model.tune_projector,
        locations=location_settings(recipe, segmenter),
    )
