"""Points where they win: of the stored targets, what is taught under `targets.only_winning`.

The store holds the IoU of each kept group and that of the box alone, so nothing is judged anew and the store stays as
it is. This module knows no segmenter, no text and no recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sam4mllm.geometry import SamPrompt
from sam4mllm.targets.store import ObjectTarget


def points_beat_box(target: ObjectTarget) -> bool:
    """Whether a kept group's IoU is above that of the box alone. A group that is as good is not worth its words."""
    return any(iou > target.box_iou for iou in target.ious)


def winning(target: ObjectTarget) -> ObjectTarget:
    """The target with the groups that beat the box, in their order; where none does, with the box alone and its IoU.

    A group that loses is left out, not replaced by the box: beside one that wins, the box would be a second answer.
    """
    won = [place for place, iou in enumerate(target.ious) if iou > target.box_iou]
    if not won:
        return replace(target, prompts=(SamPrompt(target.prompts[0].box),), ious=(target.box_iou,))
    return replace(
        target,
        prompts=tuple(target.prompts[place] for place in won),
        ious=tuple(target.ious[place] for place in won),
    )


def select_targets(targets: Mapping[str, ObjectTarget], *, only_winning: bool) -> dict[str, ObjectTarget]:
    """The targets by object id as a method is given them: with `only_winning` each one's `winning`, else themselves."""
    return {name: winning(target) if only_winning else target for name, target in targets.items()}
