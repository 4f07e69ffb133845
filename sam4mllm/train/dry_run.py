"""A dry run: what a training would do and need, seen without its weights, within seconds to minutes.

The recipe is resolved, all data sets are read, the first images of each set are opened, and conversations go through
the collator of the real training. The model is built on the meta device, for its counts. Nothing is downloaded but
config and processor of a Hub id, nothing is computed by SAM, and no run folder is written. This module knows no
formulas (`estimate.py`) and no layout (`dry_run_report.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from sam4mllm.data.entry import CHAT_SETS
from sam4mllm.data.mixture import Mixture
from sam4mllm.errors import ModelError
from sam4mllm.methods.of_recipe import reads_targets
from sam4mllm.methods.registry import Method, method_from_settings
from sam4mllm.mllm.loading import Mllm, is_hub_id
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import Recipe
from sam4mllm.train.dataset import TrainingSet, make_training_set, spread
from sam4mllm.train.estimate import DEFAULT_TFLOPS
from sam4mllm.train.prepare import resolve_recipe
from sam4mllm.train.preview import ConversationPreview, characters, preview_conversation

OF_EACH_SET = 4
"""Images of each set whose conversations are looked at."""
ALL_OVER = 48
"""Conversations looked at besides, evenly over the epoch; and the one with the longest text."""
SHOWN = 1
"""Conversations of each set whose text is shown."""

# Keys of `training` about many processes, which a dry run does not start.
_OF_MANY = ("fsdp", "fsdp_config", "deepspeed")


@dataclass(slots=True)
class DryRun:
    """What a dry run found. Sizes in bytes; `memory`, `model` and `seconds_per_epoch` are None without a config."""

    recipe: str
    method: dict[str, Any]
    sets: list[dict[str, Any]]
    validation: int
    phrases: int
    chats: int
    without_target: int
    conversations: int
    targets: dict[str, int]
    shown: list[ConversationPreview]
    tokens: dict[str, Any]
    steps: dict[str, int]
    model: dict[str, int | None] | None = None
    memory: dict[str, int | None] | None = None
    tflops: float | None = None
    seconds_per_epoch: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def dry_run(recipe: Recipe | str | Path, *, tflops: float = DEFAULT_TFLOPS) -> DryRun:
    """Go through a training without its weights; `tflops` is what the device sustains, in TFLOP/s.

    Raises:
        RecipeError, DataError, ModelError: what the training would stumble over, by the same words. A Hub id that is
            neither cached nor in reach is no error here: tokens are estimated by characters then.
    """
    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.segmenters.loading import find_checkpoint
    from sam4mllm.targets.placeholders import placeholder_targets
    from sam4mllm.targets.settings import TargetSettings
    from sam4mllm.train.arguments import training_arguments
    from sam4mllm.train.estimate import conversations_per_step, memory, model_size, operations, steps
    from sam4mllm.train.trainer import held_out

    recipe = resolve_recipe(recipe)
    notes: list[str] = []
    arguments = training_arguments(_of_one_process(recipe, notes), "cpu")
    segmenter = find_checkpoint(recipe.segmenter.checkpoint)
    settings = TargetSettings.from_recipe(recipe)
    mllm = _mllm(recipe, notes)
    method = _method(recipe, mllm)
    _note_other_run(recipe, notes)

    mixture = read_mixture(recipe.data, recipe.seed)
    validation = held_out(recipe)
    judged = mixture.samples if reads_targets(recipe) else []
    at_hand = placeholder_targets(judged, settings, recipe.targets.store, only_winning=recipe.targets.only_winning)
    lessons = make_training_set(mixture, at_hand.targets, method)
    _open_images(mixture)

    first = _firsts(mixture, lessons)
    longest = max(lessons.conversations, key=characters)
    all_over = spread(lessons.conversations, ALL_OVER)
    seen = {id(each): each for each in [*chain.from_iterable(first), *all_over, longest]}
    looks = {key: preview_conversation(each, mllm, recipe) for key, each in seen.items()}
    mean = fmean(look.tokens for look in looks.values())
    batch = arguments.per_device_train_batch_size
    epoch, whole = steps(len(lessons.conversations), arguments)
    together = conversations_per_step(arguments)
    learned = [look.learned for look in looks.values() if look.learned is not None]
    found = DryRun(
        recipe=recipe.hash(),
        method=method.settings(),
        sets=[
            {"set": drawn.name, "drawn": drawn.count, "images": len(drawn.images), "left_out": lost.phrases}
            for drawn, lost in zip(mixture.sets, mixture.left_out, strict=True)
        ],
        validation=len(validation),
        phrases=lessons.phrases,
        chats=lessons.chats,
        without_target=lessons.without_target,
        conversations=len(lessons.conversations),
        targets={"stored": at_hand.stored, "stand_ins": at_hand.made, "skipped": at_hand.skipped},
        shown=[looks[id(each)] for chosen in first for each in chosen[:SHOWN]],
        tokens={
            "counted_by": "characters" if mllm is None else "processor",
            "looked_at": len(looks),
            "mean": mean,
            "longest": max(look.tokens for look in looks.values()),
            "learned_mean": fmean(learned) if learned else None,
        },
        steps={
            "conversations_per_step": together,
            "tokens_per_step": round(mean * min(together, len(lessons.conversations))),
            "per_epoch": epoch,
            "in_all": whole,
        },
        notes=notes,
    )
    if mllm is None:
        return found
    size = model_size(mllm, recipe.model.quantization, half=arguments.bf16 or arguments.fp16)
    if size is None:
        notes.append(
            f"the layers of {mllm.family.model_type!r} are not where they are looked for; no memory and no time"
        )
        return found
    segmenter_bytes = None if segmenter is None else _bytes_of(segmenter)
    if segmenter_bytes is None:
        notes.append(f"segmenter {recipe.segmenter.checkpoint}: a Hub id, so its memory is not counted")
    patches = [look.patches for look in looks.values() if look.patches is not None]
    if size.patch is None:
        notes.append("the config does not say how large a patch is, so the eyes' time is not counted")
    checkpointing = bool(arguments.gradient_checkpointing)
    needed = memory(
        size,
        batch * found.tokens["longest"],
        optimizer=str(getattr(arguments.optim, "value", arguments.optim)),
        checkpointing=checkpointing,
        segmenter_bytes=segmenter_bytes,
    )
    one = operations(size, mean, fmean(patches) if patches else 0.0, checkpointing=checkpointing)
    found.model = asdict(size)
    found.memory = needed.to_json()
    found.tflops = tflops
    found.seconds_per_epoch = one * len(lessons.conversations) / arguments.world_size / (tflops * 1e12)
    return found


def _of_one_process(recipe: Recipe, notes: list[str]) -> Recipe:
    """The recipe without what many processes would be told."""
    chosen = recipe.training.arguments
    left = [key for key in _OF_MANY if chosen.get(key)]
    if not left:
        return recipe
    notes.append(f"training.{', training.'.join(left)}: not looked at; memory is that of a GPU that holds all")
    kept = {key: value for key, value in chosen.items() if key not in _OF_MANY}
    training = type(recipe.training).model_validate({**kept, "validate": recipe.training.validation})
    return recipe.model_copy(update={"training": training})


def _mllm(recipe: Recipe, notes: list[str]) -> Mllm | None:
    """The model on the meta device with its adapter; None for a Hub id that cannot be had here."""
    import torch

    from sam4mllm.mllm.lora import attach_lora
    from sam4mllm.mllm.meta_device import load_meta_mllm

    try:
        mllm = load_meta_mllm(recipe.model.base, dtype=recipe.model.dtype, image_size=recipe.model.image_size)
    except ModelError as error:
        # What the Hub does not give may be there on the machine that trains; all else would fail there too.
        if not is_hub_id(recipe.model.base) or not isinstance(error.__cause__, OSError):
            raise
        notes.append(
            f"{error}; tokens are estimated by characters and pixels, places are written on the grid where the family "
            "has its own way, and memory and time are not known"
        )
        return None
    with torch.device("meta"):
        return attach_lora(mllm, recipe.lora, recipe.seed, tune_projector=recipe.model.tune_projector)


def _method(recipe: Recipe, mllm: Mllm | None) -> Method:
    from sam4mllm.mllm.image_size import own_coordinates

    native = None if mllm is None else own_coordinates(mllm.family.coordinates, mllm.processor)
    return method_from_settings(recipe.method.model_dump(), native)


def _note_other_run(recipe: Recipe, notes: list[str]) -> None:
    from sam4mllm.runs.run_folder import RunFolder

    run = RunFolder(recipe.output)
    if not (run.path / "recipe.yaml").is_file():
        return
    if run.differences(recipe):
        notes.append(f"{run.path}: holds a run of another recipe, so the training would refuse it; set another output")
    elif run.is_finished:
        notes.append(f"{run.path}: this recipe is trained already, so the training would do nothing")


def _open_images(mixture: Mixture) -> None:
    """The first images of each set, opened and measured as `prepare` does.

    Raises:
        DataError: one of them is missing, broken or of another size than its annotation.
    """
    from sam4mllm.data.images import load_image
    from sam4mllm.targets.prepare import load_annotated

    sizes = {sample.image: sample.size_wh for sample in mixture.samples}
    for drawn in mixture.sets:
        for image in drawn.images[:OF_EACH_SET]:
            if image in sizes:
                load_annotated(image, sizes[image])
            else:
                load_image(image)


def _firsts(mixture: Mixture, lessons: TrainingSet) -> list[list[Conversation]]:
    """The conversations about the first images of each set, those not shown for an earlier set first."""
    split = len(lessons.conversations) - lessons.chats
    by_image: dict[bool, dict[Path, list[Conversation]]] = {True: {}, False: {}}
    for place, conversation in enumerate(lessons.conversations):
        assert isinstance(conversation.image, Path), "conversations of a mixture are about files"
        by_image[place >= split].setdefault(conversation.image, []).append(conversation)
    taken: set[int] = set()
    firsts = []
    for drawn in mixture.sets:
        of_chat = drawn.name.split()[0] in CHAT_SETS
        talks: Sequence[Conversation] = [
            each for image in drawn.images[:OF_EACH_SET] for each in by_image[of_chat].get(image, [])
        ]
        # Of an image that an earlier set has too, the next conversation is shown.
        firsts.append(sorted(talks, key=lambda each: id(each) in taken))
        taken.update(id(each) for each in firsts[-1][:SHOWN])
    return firsts


def _bytes_of(checkpoint: Path) -> int:
    """The size of a file, or of the weights in a folder."""
    files = [checkpoint] if checkpoint.is_file() else [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin")]
    return sum(file.stat().st_size for file in files)
