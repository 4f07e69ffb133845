"""TargetSettings: the part of a recipe that decides which prompts become training targets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sam4mllm.recipe.schema import Recipe

Judge = Literal["exact", "jittered", "none"]
Choose = Literal["top", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """How groups of points are sampled, scored and chosen.

    The fields have the names of the recipe's keys in `targets` and `method`, where their defaults are, and enter the
    store's key by these names. SAM4MLLM (arXiv 2409.10542) samples 64 groups of 2 positive and 1 negative points per
    object and keeps 1.

    Attributes:
        positives: Points on the object in a group.
        negatives: Points off the object in a group.
        groups: Groups that are sampled and scored per object.
        keep: Groups that become training targets.
        judge: The boxes that SAM gets while groups are scored: the true box, `jitter_boxes` jittered boxes, or no box.
        choose: The groups that are kept: those with the highest IoU ("top"), or the first ones sampled ("random").
        jitter: The largest offset of a side of a jittered box, as a share of the box's width or height.
        jitter_boxes: Jittered boxes per object.
        widen: Negatives are sampled inside the box extended by this share of its width and height on each side.
        min_iou: Groups with a lower IoU are dropped, and objects without any group left.
        seed: The recipe's seed.
        batch_size: Prompts per decoder call; it does not change the targets.

    Raises:
        ValueError: A value is out of range, or groups would be scored with neither a box nor a positive point.
    """

    positives: int
    negatives: int
    groups: int
    keep: int
    judge: Judge
    choose: Choose
    jitter: float
    jitter_boxes: int
    widen: float
    min_iou: float
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        if min(self.positives, self.negatives) < 0:
            raise ValueError(f"positives and negatives must be 0 or more; got {self.positives} and {self.negatives}")
        if min(self.groups, self.keep, self.jitter_boxes, self.batch_size) < 1:
            raise ValueError(f"groups, keep, jitter_boxes and batch_size must be at least 1; got {self}")
        if self.keep > self.groups:
            raise ValueError(f"keep must be at most groups; got {self.keep} of {self.groups}")
        if self.judge not in ("exact", "jittered", "none") or self.choose not in ("top", "random"):
            raise ValueError(f"judge must be exact, jittered or none, and choose top or random; got {self}")
        if not 0 <= self.jitter < 0.5:
            raise ValueError(
                f"jitter must be a share of a side below 0.5, so that corners keep their order; got {self.jitter}"
            )
        if self.widen < 0 or not 0 <= self.min_iou <= 1:
            raise ValueError(f"widen must be 0 or more and min_iou from 0 to 1; got {self.widen} and {self.min_iou}")
        if self.judge == "none" and self.positives == 0:
            raise ValueError("judge: none with positives: 0 gives SAM neither a box nor a point; use exact or jittered")

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> TargetSettings:
        """Return the settings of a recipe.

        Raises:
            RecipeError: The settings contradict each other.
        """
        from sam4mllm.errors import RecipeError

        targets, method = recipe.targets, recipe.method
        try:
            return cls(
                positives=method.positives,
                negatives=method.negatives,
                groups=targets.groups,
                keep=targets.keep,
                judge=targets.judge,
                choose=targets.choose,
                jitter=targets.jitter,
                jitter_boxes=targets.jitter_boxes,
                widen=targets.widen,
                min_iou=targets.min_iou,
                seed=recipe.seed,
                batch_size=targets.batch_size,
            )
        except ValueError as error:
            raise RecipeError(f"targets: {error}") from None

    def key_settings(self) -> dict[str, Any]:
        """Return the settings that the targets depend on: no batch size, and the jitter only if it is used."""
        settings = asdict(self)
        del settings["batch_size"]
        if self.judge != "jittered":
            del settings["jitter"], settings["jitter_boxes"]
        return settings
