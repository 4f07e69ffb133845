"""gRefCOCO on disk: grefs(unc).json beside COCO's instances.json -> samples that mean one object, several or none.

RefCOCO's records, but `ann_id` is an id or a list of ids, and [-1] says that the phrase means nothing in the image.
This module knows nothing about models or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam4mllm.data.fields import read_json, shorten
from sam4mllm.data.readers.refcoco import Ref, parse_refs
from sam4mllm.errors import DataError

NO_TARGET = -1


def grefs(name: str, root: Path, split_by: str) -> tuple[Path, list[Ref]]:
    """The file of refs and every ref in it, of all splits; arguments and errors as in `refcoco.refs`."""
    path = root / name / f"grefs({split_by}).json"
    return path, parse_refs(read_json(path, "the list of refs"), path, _targets)


def _targets(record: dict[str, Any], where: str) -> tuple[int, ...]:
    """The annotation ids of a ref, in order, each once; none for no target.

    Raises:
        DataError: no ids; -1 among others; `no_target: true`, which some copies carry, beside an annotation.
    """
    value = record.get("ann_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        raise DataError(f"{where}: ann_id is an id, a list of ids or [-1] for no target; found {shorten(value)}")
    targets = () if set(ids) == {NO_TARGET} else tuple(dict.fromkeys(ids))
    if NO_TARGET in targets:
        raise DataError(f"{where}: ann_id says no target (-1) beside annotations: {shorten(value)}")
    if record.get("no_target") is True and targets:
        raise DataError(f"{where}: no_target is true, but ann_id names annotations: {shorten(value)}")
    return targets
