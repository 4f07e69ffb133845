"""The prepare stage: compute, or read from the target store, the SAM-scored training targets of a recipe."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from sam4mllm.data.mixture import Mixture, read_mixture
from sam4mllm.data.sample import Sample
from sam4mllm.errors import RecipeError
from sam4mllm.evaluation.metrics import CORRECT_IOU
from sam4mllm.methods.registry import plain_method
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget, TargetStore
from sam4mllm.training.data_check import check_images
from sam4mllm.training.template_check import check_template_if_available
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext


@dataclass(frozen=True, slots=True)
class TargetFigures:
    """Counts and mean IoUs of the targets in a store.

    Attributes:
        objects: Object ids with a target.
        skipped: Object ids with a mask and without a target.
        shared: Object ids of both kinds that have the image, mask and box of an earlier id, so that its result, which
            is computed once, is theirs.
        points_beat_box: Objects with a kept group of points whose IoU is higher than that of the box alone.
        boxes_alone: Objects that are annotated by a box and have no mask, so that their box is the target.
        below_half: Objects whose best kept prompt has an IoU below 0.5.
        iou_chosen: Mean IoU of the best kept prompts; None without objects, as the two that follow.
        iou_box_alone: Mean IoU of the boxes alone.
        iou_random_group: Mean IoU over all sampled groups: the expected IoU of a randomly chosen group.
        worst: The lowest IoU of a best kept prompt and its object's id, where that IoU is below 0.5.
    """

    objects: int
    skipped: int
    shared: int
    points_beat_box: int
    boxes_alone: int
    below_half: int
    iou_chosen: float | None
    iou_box_alone: float | None
    iou_random_group: float | None
    worst: tuple[float, str] | None


@dataclass(frozen=True)
class PreparedTargets:
    """The training data of a recipe and the store that holds the targets of its objects."""

    store: TargetStore
    mixture: Mixture

    @cached_property
    def figures(self) -> TargetFigures:
        """The figures of all objects in the store, which is read on first access.

        Raises:
            DataError: A shard of the store cannot be read.
        """
        # The results are read one by one, and of each only a few numbers are kept.
        hashes: set[str] = set()
        results = points_beat_box = below_half = 0
        worst: tuple[float, str] | None = None
        ious, box_ious, mean_ious = array("d"), array("d"), array("d")
        for result in self.store.results():
            results += 1
            hashes.add(result.object_hash)
            if not isinstance(result, ObjectTarget):
                continue
            ious.append(result.ious[0])
            box_ious.append(result.box_iou)
            mean_ious.append(result.mean_iou)
            points_beat_box += result.points_beat_box
            if result.ious[0] < CORRECT_IOU:
                below_half += 1
                worst = min(worst or (1.0, ""), (result.ious[0], result.object_id))
        return TargetFigures(
            objects=len(ious),
            skipped=results - len(ious),
            shared=results - len(hashes),
            points_beat_box=points_beat_box,
            boxes_alone=len({i.id for sample in self.mixture.samples for i in sample.objects if i.rle is None}),
            below_half=below_half,
            iou_chosen=fmean(ious) if ious else None,
            iou_box_alone=fmean(box_ious) if ious else None,
            iou_random_group=fmean(mean_ious) if ious else None,
            worst=worst,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `sam4mllm prepare --json` writes."""
        figures = asdict(self.figures)
        del figures["worst"]
        return {"store": str(self.store.path), **figures}

    def summary(self) -> str:
        """Return the figures as lines of text, with the removals of the leakage filter first."""
        figures = self.figures
        lines = [
            *self.mixture.leakage_lines(),
            *(f"note: {note}" for note in self.mixture.notes()),
            f"{figures.objects} objects with a target, {figures.skipped} without, in {self.store.path}",
        ]
        if figures.shared:
            lines.append(
                f"{figures.shared} of these have the image, mask and box of another one and are not scored again"
            )
        if figures.objects:
            means = {name: getattr(figures, name) for name in ("iou_chosen", "iou_box_alone", "iou_random_group")}
            lines.append("mean " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()))
            beat = figures.points_beat_box
            lines.append(f"points beat the box for {beat} of them ({beat / figures.objects:.0%})")
        if figures.boxes_alone:
            lines.append(f"{figures.boxes_alone} objects have a box and no mask; their target is the box alone")
        if figures.worst is not None:
            iou, object_id = figures.worst
            below = f"no prompt reaches IoU {CORRECT_IOU} for {figures.below_half} objects"
            lines.append(f"{below} (worst: {iou:.2f}, {object_id}); set targets.min_iou to drop them")
        return "\n".join(lines) + "\n"


def prepare_targets(
    recipe: Recipe | str | Path, *, device: str = "auto", processes: DistributedContext = SINGLE_PROCESS
) -> PreparedTargets:
    """Compute the targets of a recipe's training data with its segmenter; those already in the store are kept.

    An interrupted call is resumed by the next one. Several processes share the work and all return the same store.

    Args:
        recipe: A recipe, or the path or name that `load_recipe` takes.
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes "cuda" is the GPU of the local rank.
        processes: The processes that share the work.

    Returns:
        The store and the mixture; figures about the targets are computed on first access.

    Raises:
        RecipeError: The recipe's method is trained without targets of the segmenter (PQPP), or its base's chat template
            cannot render its training conversations.
        DataError: A data set or images cannot be read (all of them are counted, before any target is computed), or the
            store cannot be used.
        ModelError: The segmenter or the base's processor cannot be loaded.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from sam4mllm.synthetic.writer import write_dataset
        >>> folder = TemporaryDirectory()
        >>> write_dataset(Path(folder.name, "data"), scenes=2)
        >>> overrides = [f"targets.store={folder.name}/targets", "targets.groups=2"]
        >>> overrides += [f"data.train.{index}.limit=4" for index in range(3)]
        >>> for key in ("train.0", "train.1", "train.2", "validation"):
        ...     overrides.append(f"data.{key}.root={folder.name}/data")
        >>> prepared = prepare_targets(load_recipe("shapes_ppg", overrides), device="cpu")
        >>> prepared.figures.objects > 0
        True
        >>> object_id, target = next(iter(prepared.store.read().items()))
        >>> [point.label for point in target.prompts[0].points]
        [1, 1, 0]
        >>> folder.cleanup()
    """
    name = recipe_name(recipe)
    recipe = resolve_recipe(recipe)
    if not plain_method(recipe).needs_targets:
        raise RecipeError(
            f"{name}: {recipe.method.name} is trained without SAM's targets; nothing to prepare, run train"
        )
    mixture = processes.compute_on_machine(lambda: read_mixture(recipe.data, recipe.seed))
    check_template_if_available(recipe, mixture)
    check_images(mixture.items, processes)
    return PreparedTargets(targets_of(recipe, mixture.samples, device, processes), mixture)


def targets_of(
    recipe: Recipe, samples: Sequence[Sample], device: str = "auto", processes: DistributedContext = SINGLE_PROCESS
) -> TargetStore:
    """Return the store with the targets of `samples`; those it lacks are computed with the recipe's segmenter.

    Raises:
        RecipeError, DataError, ModelError: As `prepare_targets`.
    """
    settings = TargetSettings.from_recipe(recipe)
    segmenter = load_segmenter(
        recipe.segmenter.checkpoint, resolve_device(processes.device(device)), recipe.segmenter.dtype
    )
    return compute_targets(samples, segmenter, settings, recipe.targets.store, processes)


def resolve_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return `recipe` itself, or load it where it is a path or a name.

    Raises:
        RecipeError: As `load_recipe`.
    """
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def recipe_name(recipe: Recipe | str | Path) -> str:
    """Return the path or name of a recipe, or the run folder of one that was loaded already."""
    return str(recipe.output if isinstance(recipe, Recipe) else recipe)
