"""Training: a recipe becomes a run folder, by transformers' Trainer and peft, with nothing but the next-token loss.

A run that is stopped anywhere goes on from its last whole checkpoint to the same adapter: the moments of the optimiser,
the learning rate's schedule, the order of the data and the random numbers are all restored.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam4mllm.chat.conversation import Conversation
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, RecipeError
from sam4mllm.methods import method_from_settings
from sam4mllm.mllm.load import Mllm
from sam4mllm.recipe import Recipe
from sam4mllm.train.run_folder import RunFolder
from sam4mllm.train.validation import Validation

logger = logging.getLogger(__name__)

RESERVED = {
    "remove_unused_columns": "conversations have no columns; leave it out",
    "resume_from_checkpoint": "a run resumes by itself; leave it out",
    "eval_strategy": "training is validated by generating; set training.validate",
    "load_best_model_at_end": "the best adapter by validation is kept by itself; leave it out",
    "save_only_model": "a resume needs the optimiser's moments; leave it out",
    "ignore_data_skip": "a resume keeps the order of the data; leave it out",
}
"""Keys of TrainingArguments that a run decides, and what to do instead."""


def train(recipe: Recipe, *, device: str = "auto", callbacks: Sequence[Any] = ()) -> RunFolder:
    """Train what `recipe` says, from where an earlier start stopped; a run that has ended is left as it is.

    `callbacks` are further transformers `TrainerCallback`s.

    Raises:
        RecipeError: settings that contradict each other, or a run folder of another recipe.
        DataError, ModelError: data or models that cannot be read.
    """
    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.mllm.load import load_mllm
    from sam4mllm.mllm.lora import attach_lora
    from sam4mllm.predict.loading import chosen_device
    from sam4mllm.segment.load import load_segmenter
    from sam4mllm.targets.prepare import prepare_targets
    from sam4mllm.targets.settings import TargetSettings
    from sam4mllm.train.dataset import make_lessons, spread

    device = chosen_device(device)
    # Before the folder is made: a setting that is refused must not leave a run behind.
    training_arguments(recipe, device)
    run = RunFolder.create(recipe)
    if run.is_finished:
        logger.info("%s: trained already", run.path)
        return run
    mixture = read_mixture(recipe.data, recipe.seed)
    run.keep_leakage(mixture.leakage())
    for line in mixture.leakage_lines():
        logger.info("%s", line)
    held_out = _held_out(recipe)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    store = prepare_targets(mixture.samples, segmenter, TargetSettings.from_recipe(recipe), recipe.targets.store)
    method = method_from_settings(recipe.method.model_dump())
    lessons = make_lessons(mixture, store.read(), method)
    logger.info(
        "%d phrases and %d chats in %d conversations", lessons.phrases, lessons.chats, len(lessons.conversations)
    )

    mllm = load_mllm(
        recipe.model.base,
        device=device,
        dtype=recipe.model.dtype,
        quantization=recipe.model.quantization,
        attn_implementation=recipe.model.attn_implementation,
    )
    native = mllm.family.native_grid
    if native is not None and native != recipe.method.grid:
        warnings.warn(
            f"{mllm.family.model_type} knows coordinates on a grid of {native}; method.grid is {recipe.method.grid}",
            stacklevel=2,
        )
    mllm = attach_lora(mllm, recipe.lora, recipe.seed)
    validate = None
    if held_out:
        validate = _validation(recipe, mllm, segmenter, spread(held_out, recipe.training.validation.samples))
    fit(mllm, lessons.conversations, recipe, run, validate=validate, callbacks=callbacks)
    return run


def fit(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    recipe: Recipe,
    run: RunFolder,
    *,
    validate: Callable[[], Validation] | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train the adapter on `mllm` with `conversations`, and write it to `run` when done.

    Raises:
        RecipeError: `training` holds a key that is not the recipe's to set, or a value that transformers refuses.
    """
    from transformers import PrinterCallback, Trainer

    from sam4mllm.train.callbacks import LogCallback, ValidationCallback
    from sam4mllm.train.collator import Collator

    arguments = training_arguments(recipe, mllm.device.type)
    validation = None
    if validate is not None:
        validation = ValidationCallback(run, validate, recipe.training.validation.every_steps)
    if arguments.gradient_checkpointing:
        # The embeddings are frozen, so without this no gradient would enter a checkpointed layer.
        mllm.model.enable_input_require_grads()
    trainer = Trainer(
        model=mllm.model,
        args=arguments,
        train_dataset=list(conversations),
        data_collator=Collator(mllm),
        callbacks=[LogCallback(run), *([validation] if validation else []), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)

    checkpoint = run.last_checkpoint()
    step, last_step = _progress_of(checkpoint)
    run.rewind(step)
    if checkpoint is not None and step >= last_step:
        # The trainer, resumed at its last step, would take one more.
        _load_adapter(mllm.model, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
    if validation is not None:
        validation.validate_at(step, mllm.model)
    run.finish(mllm.model, mllm.processor)


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
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training: transformers refuses these settings: {error}") from error
    least = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    low = [name for name, bound in least.items() if getattr(arguments, name) < bound]
    if low:
        raise RecipeError("\n".join(f"training.{name}: got {getattr(arguments, name)}; raise it" for name in low))
    return arguments


def _held_out(recipe: Recipe) -> list[Sample]:
    """The samples that the run is validated on.

    Raises:
        DataError: one of them has boxes and no masks, which the validation's figures are about.
    """
    from sam4mllm.data.readers import read_samples

    if recipe.data.validation is None:
        return []
    samples = read_samples(recipe.data.validation)
    if bare := [sample.id for sample in samples if not sample.has_masks]:
        raise DataError(f"data.validation: {bare[0]} has boxes and no masks, and validation compares masks")
    return samples


def _validation(recipe: Recipe, mllm: Mllm, segmenter: Any, samples: Sequence[Any]) -> Callable[[], Validation]:
    """The validation of `mllm` as it stands when called."""
    from sam4mllm.mllm.generate import TransformersEngine
    from sam4mllm.predict.pipeline import Pipeline
    from sam4mllm.train.validation import validate

    batch_size = recipe.training.validation.batch_size
    pipeline = Pipeline(
        method_from_settings(recipe.method.model_dump()),
        TransformersEngine(mllm, batch_size),
        segmenter,
        max_new_tokens=recipe.generation.max_new_tokens,
        picture_batch=batch_size,
    )
    return lambda: validate(pipeline, samples)


def _progress_of(checkpoint: Path | None) -> tuple[int, int]:
    """The step that a checkpoint was written at, and the last step of its training; (0, 1) before the first."""
    if checkpoint is None:
        return 0, 1
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"], state["max_steps"]


def _load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
