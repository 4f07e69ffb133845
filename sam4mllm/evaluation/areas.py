"""Areas of predicted and annotated masks and of their intersection, counted in the RLEs without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycocotools import mask as coco

from sam4mllm.data.masks import Rle, area, decode, encode
from sam4mllm.data.rle_runs import run_array
from sam4mllm.evaluation.metrics import CORRECT_IOU, Overlap, match_greedily


class Areas(NamedTuple):
    """The pixels of a predicted mask, of an annotated mask, and of their intersection."""

    predicted: int
    truth: int
    intersection: int

    @property
    def overlap(self) -> Overlap:
        """Intersection and union of the masks."""
        return Overlap(self.intersection, self.predicted + self.truth - self.intersection)


def areas_of(predicted: Sequence[Rle], truth: Sequence[Rle], ignored: Rle | None = None) -> Areas:
    """Count the pixels of the unions of masks of one image; ignored pixels are excluded.

    Args:
        predicted, truth: Masks as `mergeable` returns them; none is an empty mask.
        ignored: The mask of ignored pixels, likewise.
    """
    ours, theirs = _union(predicted), _union(truth)
    return Areas(
        predicted=_shared([ours], ignored),
        truth=_shared([theirs], ignored),
        intersection=_shared([ours, theirs], ignored),
    )


def correct_rles(predicted: Sequence[Rle], truth: Sequence[Rle], ignored: Rle | None = None) -> tuple[bool, ...]:
    """Return which of the predicted masks are correct, as `metrics.correct_objects`; the masks are as in `areas_of`."""
    pairs = [
        (areas_of([mask], [other], ignored).overlap.iou, i, j)
        for i, mask in enumerate(predicted)
        for j, other in enumerate(truth)
    ]
    matches = match_greedily(pairs, above=CORRECT_IOU)
    return tuple(i in matches for i in range(len(predicted)))


def mergeable(rle: Rle) -> Rle:
    """Return the mask without runs of no pixel between others, at which COCO's merge of two masks may end.

    No encoder writes such runs, but files may hold them.
    """
    runs = run_array(rle["counts"])
    return rle if runs is not None and runs[1:].all() else encode(decode(rle))


def _union(masks: Sequence[Rle]) -> Rle | None:
    """Return the union of masks; None for no mask."""
    if len(masks) < 2:
        return masks[0] if masks else None
    return _merge(masks, intersect=False)


def _shared(masks: Sequence[Rle | None], ignored: Rle | None) -> int:
    """Count the pixels that all masks have and that are not ignored; None is an empty mask."""
    given = [mask for mask in masks if mask is not None]
    if len(given) < len(masks):
        return 0
    both = given[0] if len(given) == 1 else _merge(given, intersect=True)
    return area(both) - (area(_merge([both, ignored], intersect=True)) if ignored is not None else 0)


def _merge(masks: Sequence[Rle], *, intersect: bool) -> Rle:
    encoded = [{"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in masks]
    merged = coco.merge(encoded, intersect=intersect)
    return Rle(size=masks[0]["size"], counts=merged["counts"].decode("ascii"))
