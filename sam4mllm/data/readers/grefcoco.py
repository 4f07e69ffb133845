"""Reader of gRefCOCO: grefs(unc).json beside COCO's instances.json, samples with one object, several or none.

The records are RefCOCO's, but `ann_id` is an id or a list of ids, and [-1] stands for "no target".
"""

from __future__ import annotations

from typing import Any

from sam4mllm.data.fields import read_json, shorten
from sam4mllm.data.readers.refs import RefsReader
from sam4mllm.errors import DataError

NO_TARGET = -1


def _targets(record: dict[str, Any], where: str) -> tuple[int, ...]:
    """Return the annotation ids of a ref, in order, each once; none for no target.

    Raises:
        DataError: no ids; -1 among others; `no_target: true`, which some copies of the file have, beside an annotation.
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


_READER = RefsReader("grefs({}).json", lambda path: read_json(path, "the list of refs"), _targets)
read, splits, images_by_split = _READER.read, _READER.splits, _READER.images_by_split
