"""Select which stored point groups become training targets: all of them, or those that beat the box without points.

This is the recipe's `targets.only_winning`. The store holds the IoU of each kept group and of the box alone, so nothing
is computed again, and one store serves both values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sam4mllm.geometry import SamPrompt
from sam4mllm.targets.store import ObjectTarget


def points_beat_box(target: ObjectTarget) -> bool:
    """Return whether a kept group has a higher IoU than the box without points; an equal IoU does not count."""
    return any(iou > target.box_iou for iou in target.ious)


def keep_winning_groups(target: ObjectTarget) -> ObjectTarget:
    """Keep the groups that beat the box, in their order; if there are none, the box without points and its IoU.

    If some groups beat the box, the other groups are dropped and not replaced by the box: the object would have two
    different answers.
    """
    kept = [group for group, iou in enumerate(target.ious) if iou > target.box_iou]
    if not kept:
        return replace(target, prompts=(SamPrompt(target.prompts[0].box),), ious=(target.box_iou,))
    return replace(
        target,
        prompts=tuple(target.prompts[group] for group in kept),
        ious=tuple(target.ious[group] for group in kept),
    )


def select_targets(targets: Mapping[str, ObjectTarget], *, only_winning: bool) -> dict[str, ObjectTarget]:
    """Return the targets that a method is trained on, by object id.

    Args:
        targets: The stored targets, by object id.
        only_winning: Keep only the groups that beat the box; see `keep_winning_groups`.
    """
    return {name: keep_winning_groups(target) if only_winning else target for name, target in targets.items()}
