"""Polygons of fewer than three points beside others, which scaling and simplification of annotations leave over."""

from __future__ import annotations

from sam4mllm.data.problems import add_problems
from sam4mllm.errors import DataError


def without_degenerate(segmentation: object, where: str) -> object:
    """Return COCO's `segmentation` without the polygons of one or two points, if bad records are left out or listed.

    Each is added to the list of problems, and named by `where`. They have no area, so the others are the mask. Any
    other segmentation, and one of no other polygon, is returned as it is.
    """
    if not isinstance(segmentation, list):
        return segmentation
    degenerate = [isinstance(part, list) and len(part) in (2, 4) for part in segmentation]
    if not any(degenerate) or all(degenerate):
        return segmentation
    problems = [
        DataError(f"{where}: polygon {number} of {len(segmentation)} has fewer than three points", "mask")
        for number, is_degenerate in enumerate(degenerate, start=1)
        if is_degenerate
    ]
    if not add_problems(problems):
        return segmentation
    return [part for part, is_degenerate in zip(segmentation, degenerate, strict=True) if not is_degenerate]
