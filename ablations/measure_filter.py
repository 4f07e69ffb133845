"""Experiment "filter": the IoU of the point groups that each variant of choosing training targets keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sam4mllm.data.images import load_image
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import RecipeError
from sam4mllm.evaluation.report import text_table
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.targets.objects import objects_by_image
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.sampling import PointGroups, jittered_boxes, seeded_rng
from sam4mllm.targets.scoring import Candidate, score_groups
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget
from sam4mllm.utils.progress import bar

BOX_ALONE = "box alone"
DESCRIPTION = """Measure what the selection of point groups by SAM contributes, under each way of scoring them.

Five variants of the training targets: the top group scored with the exact box, with jittered boxes or without a box; a
random group; the box alone. On the objects of the validation split the table has, for each variant, the mean IoU with
the true mask as the variant scored it, then with the exact box, with other jittered boxes (of another seed, the same
for all rows) and without a box. With --train each variant is trained for the same number of steps on the same data with
the same seed, and the table has the cIoU of the last adapter on that split.
"""

VARIANTS: dict[str, tuple[str, ...]] = {
    "top, exact box": ("targets.choose=top", "targets.judge=exact"),
    "top, jittered boxes": ("targets.choose=top", "targets.judge=jittered"),
    "top, no box": ("targets.choose=top", "targets.judge=none"),
    "random group": ("targets.choose=random", "targets.judge=exact"),
    BOX_ALONE: ("targets.choose=top", "targets.judge=exact", "method.positives=0", "method.negatives=0"),
}
"""The variants of choosing training targets by their names in the table, and the settings in which they differ."""

JUDGES = ("exact", "jittered", "none")
OTHER_BOXES = 8
"""Jittered boxes per object with which all rows are compared."""


@dataclass
class Row:
    """One variant, as means over the objects; IoUs are fractions.

    `judged` is the IoU as the variant itself scores its groups, `spread` the standard deviation over an object's
    groups, `under` the IoU with each box of `JUDGES` (the box alone has none without a box). `ciou` and `malformed` are
    those of the trained models, one for each seed.
    """

    judged: float
    spread: float
    under: dict[str, float]
    ciou: list[float] = field(default_factory=list)
    malformed: list[float] = field(default_factory=list)


def measure(
    samples: Sequence[Sample], segmenter: Segmenter, settings: Mapping[str, TargetSettings], store: Path
) -> tuple[int, dict[str, Row]]:
    """Return the number of objects that have a target in every variant, and the rows of `settings` on these.

    Raises:
        RecipeError: No object has a target in every variant.
    """
    # 1. Choose the targets of each variant, and keep the objects that all variants share, each under its first id.
    chosen = {variant: compute_targets(samples, segmenter, each, store).read() for variant, each in settings.items()}
    images = objects_by_image(samples)
    first_ids = {each.item.id for image in images for each in image.objects}
    shared = first_ids.intersection(*chosen.values())
    if not shared:
        raise RecipeError("no object has a training target in every variant; lower targets.min_iou")

    # 2. Score all of them again with the same boxes.
    ious: dict[str, dict[str, list[float]]] = {variant: {judge: [] for judge in JUDGES} for variant in settings}
    with bar("score again", len(images), unit="images") as advance:
        for image in images:
            embedded = segmenter.embed([load_image(image.image)])
            for item in (each.item for each in image.objects):
                if item.id in shared:
                    targets = {variant: by_id[item.id] for variant, by_id in chosen.items()}
                    for variant, judge, iou in _rescore(item, image.size_wh, targets, segmenter, embedded, settings):
                        ious[variant][judge].append(iou)
            advance()

    # 3. Average over the objects.
    rows = {}
    for variant, by_id in chosen.items():
        measured = [by_id[name] for name in sorted(shared)]
        under = {judge: fmean(values) for judge, values in ious[variant].items() if values}
        rows[variant] = Row(fmean(each.ious[0] for each in measured), fmean(each.std_iou for each in measured), under)
    return len(shared), rows


def _rescore(
    item: MaskObject,
    size_wh: tuple[int, int],
    targets: Mapping[str, ObjectTarget],
    segmenter: Segmenter,
    embedded: Any,
    settings: Mapping[str, TargetSettings],
) -> Iterator[tuple[str, str, float]]:
    """Yield (variant, judge, IoU) of one object for the points that each variant chose, all with the same boxes."""
    variants = [variant for variant in targets if variant != BOX_ALONE]
    first_settings = settings[variants[0]]
    first = targets[variants[0]].prompts[0].points
    groups = PointGroups(
        np.array([[(p.x, p.y) for p in targets[name].prompts[0].points] for name in variants], dtype=np.float32),
        np.array([point.label for point in first], dtype=np.int64),
    )
    # This text is a part of the seed: with another one the boxes, and the figures in docs/, would change.
    rng = seeded_rng(first_settings.seed, "boxes that judge nobody", item.id)
    exact = np.array([item.box], dtype=np.float32)
    others = jittered_boxes(item.box, size_wh, rng, share=first_settings.jitter, count=OTHER_BOXES)
    for judge, boxes, alone in zip(JUDGES, (exact, others, None), (exact, others, exact), strict=True):
        candidates = [Candidate(item.mask(), groups, boxes, alone)]
        (scores,) = score_groups(segmenter, embedded, candidates, first_settings.batch_size)
        for variant, iou in zip(variants, scores.ious.tolist(), strict=True):
            yield variant, judge, iou
        if BOX_ALONE in targets and judge != "none":
            yield BOX_ALONE, judge, scores.box_iou


def table(rows: Mapping[str, Row]) -> list[str]:
    """Return the rows as text, in percent; the cIoU of several seeds as their mean and range."""
    lines = []
    for variant, row in rows.items():
        under = [_percent(row.under[judge]) if judge in row.under else "-" for judge in JUDGES]
        ciou = "-"
        if row.ciou:
            ciou = _percent(fmean(row.ciou))
            if len(row.ciou) > 1:
                ciou += f" ({_percent(min(row.ciou))} to {_percent(max(row.ciou))})"
        lines.append([variant, _percent(row.judged), _percent(row.spread), *under, ciou, ""])
    titles = ["as scored", "spread", "exact box", "other jittered boxes", "no box", "cIoU after training"]
    return text_table(["training target", *titles, ""], lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
