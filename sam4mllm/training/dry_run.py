"""The dry run: check a training run and estimate its needs without loading weights, within seconds to minutes.

All data sets are read, the first images of each are opened, and conversations are tokenized by the collator that
training uses. The model is built on the meta device, to count its parameters. Only the config and the processor of a
Hub id are downloaded, no targets are computed, and no run folder is written.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam4mllm.data.images import load_image
from sam4mllm.data.mixture import Mixture, read_mixture
from sam4mllm.errors import ModelError
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.loading import Mllm, is_hub_id, longest_input
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.file_names import RECIPE
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.targets.placeholders import placeholder_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.arguments import added_tokens, location_settings, training_arguments
from sam4mllm.training.data_check import check_texts, long_chat_notes
from sam4mllm.training.dataset import make_training_set
from sam4mllm.training.dry_run_report import DryRun
from sam4mllm.training.estimate import (
    DEFAULT_TFLOPS,
    conversations_per_step,
    memory,
    model_size,
    optimizer_steps,
    training_flops,
)
from sam4mllm.training.prepare import resolve_recipe
from sam4mllm.training.preview import IMAGES_PER_SET, TrainingSetPreview, preview_training_set
from sam4mllm.training.validation import validation_samples

# Keys of `training` about several processes, which a dry run does not start.
_DISTRIBUTED_KEYS = ("fsdp", "fsdp_config", "deepspeed")


def dry_run(recipe: Recipe | str | Path, *, tflops: float = DEFAULT_TFLOPS) -> DryRun:
    """Check a training run and estimate its memory and time, without loading weights or writing files.

    Args:
        recipe: A recipe, or the path or name that `load_recipe` takes.
        tflops: The throughput that the device sustains, in TFLOP/s.

    Raises:
        RecipeError, DataError, ModelError: The errors that training would raise, with the same messages. A Hub id
            that is neither cached nor reachable is not an error here: tokens are then estimated from characters.
    """
    from sam4mllm.segmenters.loading import find_checkpoint

    # 1. Check the settings, and build the model on the meta device.
    recipe = resolve_recipe(recipe)
    notes: list[str] = []
    arguments = training_arguments(_for_one_process(recipe, notes), "cpu")
    segmenter = find_checkpoint(recipe.segmenter.checkpoint)
    settings = TargetSettings.from_recipe(recipe)
    mllm = _meta_model(recipe, notes)
    method = _method(recipe, mllm)
    notes += _notes_on_run_folder(recipe)
    # 2. Read the data, and make placeholders for the targets that are in no store.
    mixture = read_mixture(recipe.data, recipe.seed)
    notes += mixture.notes()
    held_out = validation_samples(recipe)
    if mllm is not None:
        texts = [*mixture.annotated, *held_out]
        check_texts(mllm.processor, texts, mixture.dialogues, added=added_tokens(recipe))
        notes += long_chat_notes(mllm.processor, longest_input(mllm.model.config), mixture.dialogues)
    samples = mixture.samples if method.needs_targets else []
    known = placeholder_targets(samples, settings, recipe.targets.store)
    training_set = make_training_set(mixture, known.targets, method)
    _open_first_images(mixture)
    # 3. Tokenize a part of the conversations.
    preview = preview_training_set(training_set, mixture, mllm, recipe)
    report = DryRun(
        recipe=recipe.hash(),
        method=method.settings(),
        sets=[
            {"set": sampled.name, "sampled": sampled.count, "images": len(sampled.images), "removed": removal.phrases}
            for sampled, removal in zip(mixture.sets, mixture.removals, strict=True)
        ],
        validation=len(held_out),
        phrases=training_set.phrases,
        regions=training_set.regions,
        captions=training_set.captions,
        chats=training_set.chats,
        without_target=training_set.without_target,
        conversations=len(training_set.conversations),
        targets={"stored": known.stored, "placeholders": known.made, "skipped": known.skipped},
        shown=preview.shown,
        tokens=_tokens(preview, "characters" if mllm is None else "processor"),
        steps=_steps(len(training_set.conversations), preview.mean_tokens, arguments),
        notes=notes,
    )
    # 4. Estimate memory and time.
    if mllm is not None:
        _add_estimates(report, recipe, mllm, arguments, preview, segmenter, tflops)
    return report


def _for_one_process(recipe: Recipe, notes: list[str]) -> Recipe:
    """Return the recipe without its settings for several processes."""
    arguments = recipe.training.arguments
    ignored = [key for key in _DISTRIBUTED_KEYS if arguments.get(key)]
    if not ignored:
        return recipe
    notes.append(f"training.{', training.'.join(ignored)}: not checked; memory is that of a GPU that holds all weights")
    kept = {key: value for key, value in arguments.items() if key not in _DISTRIBUTED_KEYS}
    training = type(recipe.training).model_validate({**kept, "validate": recipe.training.validation})
    return recipe.model_copy(update={"training": training})


def _meta_model(recipe: Recipe, notes: list[str]) -> Mllm | None:
    """Build the model with its adapter on the meta device; None for a Hub id that is not available here."""
    import torch

    from sam4mllm.mllm.lora import attach_lora
    from sam4mllm.mllm.meta_loading import load_meta_mllm

    try:
        mllm = load_meta_mllm(recipe.model.base, dtype=recipe.model.dtype, image_size=recipe.model.image_size)
    except ModelError as error:
        # The machine that trains may have access to the Hub where this one has none; other errors occur there, too.
        if not is_hub_id(recipe.model.base) or not isinstance(error.__cause__, OSError):
            raise
        notes.append(
            f"{error}; tokens are estimated from characters and pixels, coordinates are written on the plain grid even "
            "if the family has its own convention, and memory and time are not known"
        )
        return None
    with torch.device("meta"):
        return attach_lora(
            mllm,
            recipe.lora,
            recipe.seed,
            tune_projector=recipe.model.tune_projector,
            locations=location_settings(recipe),
        )


def _method(recipe: Recipe, mllm: Mllm | None) -> Method:
    """Build the recipe's method with the coordinate convention of the model's family, where the model is known."""
    native = None if mllm is None else native_coordinates(mllm.family.coordinates, mllm.processor)
    return method_from_settings(recipe.method.model_dump(), native)


def _notes_on_run_folder(recipe: Recipe) -> list[str]:
    """Return a note if the run folder would make training fail or do nothing."""
    run = RunFolder(recipe.output)
    if not (run.path / RECIPE).is_file():
        return []
    if run.is_trained and run.differences(recipe):
        return [f"{run.path}: contains a run of another recipe, so training will be refused; set another output"]
    if run.is_finished_for(recipe):
        return [f"{run.path}: this recipe has already been trained, so training will do nothing; set another output"]
    return []


def _open_first_images(mixture: Mixture) -> None:
    """Open the first images of each data set and check their sizes, as `prepare` does.

    Raises:
        DataError: An image is missing, broken, or of another size than its annotation.
    """
    from sam4mllm.targets.prepare import load_annotated_image

    sizes = {item.image: item.size_wh for item in mixture.annotated}
    for sampled in mixture.sets:
        for image in sampled.images[:IMAGES_PER_SET]:
            if image in sizes:
                load_annotated_image(image, sizes[image])
            else:
                load_image(image)


def _tokens(preview: TrainingSetPreview, counted_by: str) -> dict[str, Any]:
    """Return the tokens of a conversation, as in the report."""
    return {
        "counted_by": counted_by,
        "conversations": len(preview.previews),
        "mean": preview.mean_tokens,
        "longest": preview.longest,
        "supervised_mean": preview.mean_supervised,
    }


def _steps(conversations: int, mean_tokens: float, arguments: Any) -> dict[str, int]:
    """Return the optimizer steps, as in the report."""
    epoch, total = optimizer_steps(conversations, arguments)
    per_step = conversations_per_step(arguments)
    return {
        "conversations_per_step": per_step,
        "tokens_per_step": round(mean_tokens * min(per_step, conversations)),
        "per_epoch": epoch,
        "total": total,
    }


def _add_estimates(
    report: DryRun,
    recipe: Recipe,
    mllm: Mllm,
    arguments: Any,
    preview: TrainingSetPreview,
    segmenter: Path | None,
    tflops: float,
) -> None:
    """Add the model's counts, memory and the time of an epoch to the report; notes name what is missing."""
    quantization, quantize_vision = recipe.model.quantization, recipe.model.quantize_vision
    half = arguments.bf16 or arguments.fp16
    size = model_size(mllm, quantization, half=half, quantize_vision=quantize_vision)
    if size is None:
        report.notes.append(
            f"{mllm.family.model_type!r} has no `layers` in its language model or no output layer; memory and time "
            "cannot be estimated"
        )
        return
    segmenter_bytes = None if segmenter is None else _weights_bytes(segmenter)
    if segmenter_bytes is None:
        report.notes.append(f"segmenter {recipe.segmenter.checkpoint}: a Hub id, so its memory is not counted")
    if quantization is not None:
        tower = "vision tower is quantized, too" if quantize_vision else "vision tower is not quantized"
        report.notes.append(f"model.quantize_vision: the {tower}; unquantized weights are counted in float32")
    if size.patch is None:
        report.notes.append("the config has no patch size, so the time of the vision tower is not counted")
    checkpointing = bool(arguments.gradient_checkpointing)
    needed = memory(
        size,
        arguments.per_device_train_batch_size * preview.longest,
        optimizer=str(getattr(arguments.optim, "value", arguments.optim)),
        checkpointing=checkpointing,
        segmenter_bytes=segmenter_bytes,
    )
    flops = training_flops(size, preview.mean_tokens, preview.mean_patches, checkpointing=checkpointing)
    report.model = asdict(size)
    report.memory = needed.to_json()
    report.tflops = tflops
    report.seconds_per_epoch = flops * report.conversations / arguments.world_size / (tflops * 1e12)


def _weights_bytes(checkpoint: Path) -> int:
    """Return the size of a file, or of the weights in a folder."""
    files = [checkpoint] if checkpoint.is_file() else [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin")]
    return sum(file.stat().st_size for file in files)
