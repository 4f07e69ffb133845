"""The tasks that are scored without masks, by the names of `--task`."""

from __future__ import annotations

from collections.abc import Callable

from sam4mllm.data.entry import DataEntry
from sam4mllm.errors import ArgumentError
from sam4mllm.evaluation.tasks.base import TaskSplit
from sam4mllm.evaluation.tasks.grounded_caption import GroundedCaptions
from sam4mllm.evaluation.tasks.pope import Pope
from sam4mllm.evaluation.tasks.rec import Rec
from sam4mllm.evaluation.tasks.region_caption import RegionCaption

_READERS: dict[str, Callable[[DataEntry], TaskSplit]] = {
    "rec": Rec.read,
    "region-caption": RegionCaption.read,
    "pope": Pope.read,
    "grounded-caption": GroundedCaptions.read,
}


def read_task(task: str, entry: DataEntry) -> TaskSplit:
    """Read the split of an entry for a task.

    Raises:
        ArgumentError: An unknown task.
        DataError: The data set cannot be read, or has nothing that the task scores.
    """
    if task not in _READERS:
        raise ArgumentError("task", f"is one of {', '.join(_READERS)}; found {task!r}")
    return _READERS[task](entry)
