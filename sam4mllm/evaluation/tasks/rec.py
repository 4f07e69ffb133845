"""Referring expression comprehension: is the box right that a model gives for a phrase?

- `acc_50` (Acc@0.5): the share of phrases whose first box has IoU > 0.5 with the annotated box; None if a phrase of the
  split refers to several objects or none, for which it is not defined.
- `acc_50_any` (ANY-BOX): the first box has IoU > 0.5 with one of the phrase's annotated boxes.
- `acc_50_merged` (MERGED-BOX): the box around all boxes of the answer has IoU > 0.5 with the one around all annotated
  boxes of the phrase.

The last two are the protocols of phrase grounding on Flickr30k Entities (as in MDETR, arXiv 2104.12763). Phrases
without an object are left out of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.reading import read_samples
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.metrics import CORRECT_IOU, share
from sam4mllm.evaluation.suite import is_comparable
from sam4mllm.evaluation.tasks.answers import AnswerLine, TaskQuery, answers_by_id
from sam4mllm.evaluation.tasks.base import TaskName, TaskScores, count_statuses
from sam4mllm.geometry import Box


class Rec:
    """A split of phrases with annotated boxes.

    Raises:
        DataError: No phrase refers to an object.
    """

    task: ClassVar[TaskName] = "rec"
    needs: ClassVar[str] = "boxes"

    def __init__(self, samples: Sequence[Sample], dataset: str, split: str, *, comparable: bool = False) -> None:
        if not any(sample.objects for sample in samples):
            raise DataError(f"{dataset} {split}: no phrase with an object to compare boxes with")
        self.samples = list(samples)
        self.dataset, self.split = dataset, split
        self.comparable = comparable

    @classmethod
    def read(cls, entry: DataEntry) -> Rec:
        """Read the split of an entry; masks are not needed."""
        samples = read_samples(entry)
        return cls(samples, entry.dataset, entry.split_name, comparable=is_comparable(entry, samples))

    def queries(self) -> list[TaskQuery]:
        return [TaskQuery(sample.id, sample.image, sample.phrase) for sample in self.samples]

    def score(self, lines: Iterable[AnswerLine | Mapping[str, Any]]) -> TaskScores:
        ids = [sample.id for sample in self.samples]
        answers = answers_by_id(lines, ids, f"{self.dataset} {self.split}", self.needs)
        first: list[bool] = []
        merged: list[bool] = []
        for sample in self.samples:
            line, truth = answers.get(sample.id), [item.box for item in sample.objects]
            if not truth:
                continue
            boxes = line.boxes if line is not None and line.status == "ok" and line.boxes else ()
            first.append(bool(boxes) and is_correct(boxes[0], truth))
            merged.append(bool(boxes) and is_correct(enclosing_box(boxes), [enclosing_box(truth)]))
        one_object = all(len(sample.objects) == 1 for sample in self.samples)
        figures = {
            "acc_50": share(first) if one_object else None,
            "acc_50_any": share(first),
            "acc_50_merged": share(merged),
        }
        counts = count_statuses(answers, len(ids))
        return TaskScores(
            self.task, self.dataset, self.split, **counts, figures=figures, comparable=self.comparable and one_object
        )


def is_correct(box: Box, truth: Iterable[Box]) -> bool:
    """Return whether a box has IoU > 0.5 with one of the annotated boxes."""
    return any(box.iou(other) > CORRECT_IOU for other in truth)


def enclosing_box(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around one or more boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return Box(min(x1), min(y1), max(x2), max(y2))
