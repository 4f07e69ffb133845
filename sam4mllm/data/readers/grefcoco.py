"""Reader of gRefCOCO: grefs(unc).json beside COCO's instances.json, samples with one object, several or none.

The records are RefCOCO's, but `ann_id` is an id or a list of ids, and [-1] stands for "no target".
"""

from __future__ import annotations

from typing import Any

from sam4mllm.data.readers.refs import RefRecord, RefsReader
from sam4mllm.data.records import is_integer, read_json, shorten

NO_TARGET = -1


class GRefCocoRecord(RefRecord):
    """A ref of gRefCOCO: any number of objects. Some copies of the file carry `no_target` as well."""

    ann_id: Any = None
    no_target: Any = None

    def annotation_ids(self) -> tuple[int, ...]:
        """Return the annotations of the ref's objects in order, each once; none for "no target".

        Raises:
            ValueError: No ids; -1 among other ids; `no_target: true` beside an annotation.
        """
        ids = self.ann_id if isinstance(self.ann_id, list) else [self.ann_id]
        if not ids or not all(map(is_integer, ids)):
            raise ValueError(f"ann_id is an id, a list of ids, or [-1] for no target; found {shorten(self.ann_id)}")
        targets = () if set(ids) == {NO_TARGET} else tuple(dict.fromkeys(ids))
        if NO_TARGET in targets:
            raise ValueError(f"ann_id holds -1 (no target) beside annotations: {shorten(self.ann_id)}")
        if self.no_target is True and targets:
            raise ValueError(f"no_target is true, but ann_id names annotations: {shorten(self.ann_id)}")
        return targets


_READER = RefsReader("grefs({}).json", lambda path: read_json(path, "the list of refs"), GRefCocoRecord)
read, splits, images_by_split = _READER.read, _READER.splits, _READER.images_by_split
