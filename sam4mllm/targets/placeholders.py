"""Placeholder targets for a dry run: stored targets where they exist, else made-up points of the same number.

The length of a conversation depends on the number of boxes and points in the answer, so it can be estimated without
SAM. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import FORMAT, ObjectTarget, SkippedObject, TargetStore


@dataclass(frozen=True, slots=True)
class PlaceholderTarget:
    """The prompts of one object, as in `ObjectTarget`, without scores."""

    prompts: tuple[SamPrompt, ...]


@dataclass(frozen=True, slots=True)
class PlaceholderTargets:
    """Placeholder targets of all objects.

    Attributes:
        targets: The placeholder targets, by object id.
        stored: The number of targets that come from a store.
        made: The number of targets with made-up points.
        skipped: The number of objects for which a store has the reason of a missing target instead of a target.
    """

    targets: dict[str, PlaceholderTarget]
    stored: int
    made: int
    skipped: int


def placeholder_targets(samples: Iterable[Sample], settings: TargetSettings, root: Path) -> PlaceholderTargets:
    """Return a target for every object with a mask.

    Stored targets are used from all stores under `root` with the same settings, if they have the same box. Their
    segmenter and images are not compared: this would read the weights and the bytes of all images.

    Args:
        samples: The samples.
        settings: The settings of the targets.
        root: The folder of the stores.

    Raises:
        DataError: A store cannot be read.
    """
    objects = {item.id: item for sample in samples for item in sample.objects if item.rle is not None}
    known: dict[str, ObjectTarget | SkippedObject] = {}
    for store in _matching_stores(root, settings):
        for result in store.results():
            if result.object_id in objects and _has_same_box(result, objects[result.object_id]):
                known.setdefault(result.object_id, result)
    stored = {
        name: PlaceholderTarget(result.prompts) for name, result in known.items() if isinstance(result, ObjectTarget)
    }
    made = {name: placeholder_target(item, settings) for name, item in objects.items() if name not in known}
    return PlaceholderTargets({**stored, **made}, len(stored), len(made), len(known) - len(stored))


def placeholder_target(item: MaskObject, settings: TargetSettings) -> PlaceholderTarget:
    """Return the true box with positive points along its horizontal center line and negatives along its top edge."""
    positives = _row_of_points(item.box, settings.positives, (item.box.y1 + item.box.y2) / 2, POSITIVE)
    negatives = _row_of_points(item.box, settings.negatives, item.box.y1, NEGATIVE)
    return PlaceholderTarget((SamPrompt(item.box, (*positives, *negatives)),) * settings.keep)


def _row_of_points(box: Box, count: int, y: float, label: int) -> list[Point]:
    return [Point(box.x1 + box.width * (index + 1) / (count + 1), y, label) for index in range(count)]


def _matching_stores(root: Path, settings: TargetSettings) -> list[TargetStore]:
    """Return all stores under `root` with these settings in today's format."""
    wanted = json.loads(json.dumps(settings.key_settings()))
    stores = []
    for file in sorted(root.glob("*/key.json")):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # An unreadable key is not an error here: `TargetStore.open` reports it if this store is needed.
            continue
        if isinstance(key, dict) and key.get("format") == FORMAT and key.get("settings") == wanted:
            stores.append(TargetStore(file.parent, key))
    return stores


def _has_same_box(result: ObjectTarget | SkippedObject, item: MaskObject) -> bool:
    return isinstance(result, SkippedObject) or result.prompts[0].box == item.box
