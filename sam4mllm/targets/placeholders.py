"""Targets without SAM: what stores hold already, and stand-ins of the right shape for the rest.

To see how long conversations will be it is enough that an answer has as many boxes and points as the real one. This
module judges nothing, and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from sam4mllm.targets.filter import select_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget, SkippedObject, TargetStore


@dataclass(frozen=True, slots=True)
class PlaceholderTarget:
    """What is taught for one object, as far as it is known: `prompts` as in `ObjectTarget`."""

    prompts: tuple[SamPrompt, ...]


@dataclass(frozen=True, slots=True)
class PlaceholderTargets:
    """Targets by object id: `stored` of them come from a store, `made` are stand-ins; `skipped` cannot be taught."""

    targets: dict[str, PlaceholderTarget]
    stored: int
    made: int
    skipped: int


def placeholder_targets(
    samples: Iterable[Sample], settings: TargetSettings, root: Path, *, only_winning: bool = False
) -> PlaceholderTargets:
    """A target for every object with a mask.

    Stores under `root` count that were made with the same settings and have the object with the same box. Whether their
    segmenter and images are the same is not looked at: that would take the weights, and every image's bytes.
    With `only_winning`, points that lose against the box are left out of what is stored; a stand-in keeps its points.

    Raises:
        DataError: a store that cannot be read.
    """
    objects = {item.id: item for sample in samples for item in sample.objects if item.rle is not None}
    known: dict[str, ObjectTarget | SkippedObject] = {}
    for store in _stores(root, settings):
        for result in store.results():
            if result.object_id in objects and _same(result, objects[result.object_id]):
                known.setdefault(result.object_id, result)
    judged = {name: result for name, result in known.items() if isinstance(result, ObjectTarget)}
    taught = select_targets(judged, only_winning=only_winning)
    stored = {name: PlaceholderTarget(target.prompts) for name, target in taught.items()}
    made = {name: placeholder_target(item, settings) for name, item in objects.items() if name not in known}
    return PlaceholderTargets({**stored, **made}, len(stored), len(made), len(known) - len(stored))


def placeholder_target(item: MaskObject, settings: TargetSettings) -> PlaceholderTarget:
    """The true box, with points across its middle (on the object) and its upper edge (off it)."""
    on = _across(item.box, settings.positives, (item.box.y1 + item.box.y2) / 2, POSITIVE)
    off = _across(item.box, settings.negatives, item.box.y1, NEGATIVE)
    return PlaceholderTarget((SamPrompt(item.box, (*on, *off)),) * settings.keep)


def _across(box: Box, count: int, y: float, label: int) -> list[Point]:
    return [Point(box.x1 + box.width * (index + 1) / (count + 1), y, label) for index in range(count)]


def _stores(root: Path, settings: TargetSettings) -> list[TargetStore]:
    wanted = json.loads(json.dumps(settings.deciding()))
    found = []
    for file in sorted(root.glob("*/key.json")):
        try:
            key = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Not a store's key: `prepare` says so where it is the one that it needs.
            continue
        if isinstance(key, dict) and key.get("settings") == wanted:
            found.append(TargetStore(file.parent, key))
    return found


def _same(result: ObjectTarget | SkippedObject, item: MaskObject) -> bool:
    return isinstance(result, SkippedObject) or result.prompts[0].box == item.box
