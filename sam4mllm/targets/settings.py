"""TargetSettings: all but data and segmenter that decides which prompts are taught. Defaults live in the recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sam4mllm.recipe.schema import Recipe

Judge = Literal["exact", "jittered", "none"]
Choose = Literal["top", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """How groups of points are drawn, judged and chosen; the fields are the recipe's `targets`, `method` and `seed`.

    Raises:
        ValueError: numbers that cannot be; no box and no positive point to judge by.
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
            raise ValueError(f"points are 0 or more; got {self.positives} positives and {self.negatives} negatives")
        if min(self.groups, self.keep, self.jitter_boxes, self.batch_size) < 1:
            raise ValueError(f"groups, keep, jitter_boxes and batch_size are at least 1; got {self}")
        if self.keep > self.groups:
            raise ValueError(f"keep is at most groups; got {self.keep} of {self.groups}")
        if self.judge not in ("exact", "jittered", "none") or self.choose not in ("top", "random"):
            raise ValueError(f"judge is exact, jittered or none, choose is top or random; got {self}")
        if not 0 <= self.jitter < 0.5:
            raise ValueError(
                f"jitter is a share of a side below 0.5, so that corners keep their order; got {self.jitter}"
            )
        if self.widen < 0 or not 0 <= self.min_iou <= 1:
            raise ValueError(f"widen is 0 or more and min_iou from 0 to 1; got {self.widen} and {self.min_iou}")
        if self.judge == "none" and self.positives == 0:
            raise ValueError("judge: none leaves SAM nothing to segment by when positives is 0; use exact or jittered")

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> TargetSettings:
        """The settings of a recipe.

        Raises:
            RecipeError: settings that contradict each other.
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

    def deciding(self) -> dict[str, Any]:
        """What the targets depend on: all but the batch size, and the jitter only where it is used."""
        settings = asdict(self)
        del settings["batch_size"]
        if self.judge != "jittered":
            del settings["jitter"], settings["jitter_boxes"]
        return settings
