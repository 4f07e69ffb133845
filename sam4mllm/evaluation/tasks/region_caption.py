"""Region captions: a phrase for a region of the image, scored by CIDEr-D against the phrases annotated for it.

One query for each object of the split; all phrases that refer to it alone are its references. `cider_d` is the mean
over the objects (`evaluation.cider`; papers print 100 times this value), and `exact_match` the share of captions with
the tokens of a reference. An object without an answer counts as an empty caption.

METEOR is not computed: METEOR 1.5, whose figures papers print, is a Java program with tables of paraphrases, and the
versions in Python need WordNet, which is downloaded, and give other values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.reading import read_samples
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.cider import cider_d
from sam4mllm.evaluation.metrics import share
from sam4mllm.evaluation.ptb_tokens import caption_tokens
from sam4mllm.evaluation.tasks.answers import AnswerLine, TaskQuery, answers_by_id
from sam4mllm.evaluation.tasks.base import TaskName, TaskScores, count_statuses
from sam4mllm.evaluation.tasks.published import is_published_region_caption
from sam4mllm.prompts.questions import ask_region_caption


class RegionCaption:
    """A split of objects with the phrases that refer to each of them.

    Phrases that refer to several objects or to none are left out.

    Raises:
        DataError: No phrase refers to a single object.
    """

    task: ClassVar[TaskName] = "region-caption"
    needs: ClassVar[str] = "answer"

    def __init__(self, samples: Sequence[Sample], dataset: str, split: str, *, split_by: str | None = None) -> None:
        self._by_object: dict[str, list[Sample]] = {}
        for sample in samples:
            if len(sample.objects) == 1:
                self._by_object.setdefault(sample.objects[0].id, []).append(sample)
        if not self._by_object:
            raise DataError(f"{dataset} {split}: no phrase refers to a single object, whose region could be described")
        self.dataset, self.split = dataset, split
        images = len({sample.image for sample in samples})
        self.comparable = is_published_region_caption(dataset, split_by, split, len(self._by_object), images)

    @classmethod
    def read(cls, entry: DataEntry) -> RegionCaption:
        """Read the split of an entry; masks are not needed."""
        split_by = entry.split_by or entry.row.split_by
        return cls(read_samples(entry), entry.dataset, entry.split_name, split_by=split_by)

    def queries(self) -> list[TaskQuery]:
        return [
            TaskQuery(name, samples[0].image, ask_region_caption(), (samples[0].objects[0].box,))
            for name, samples in self._by_object.items()
        ]

    def score(self, lines: Iterable[AnswerLine | Mapping[str, Any]]) -> TaskScores:
        answers = answers_by_id(lines, self._by_object, f"{self.dataset} {self.split}", self.needs)
        captions = [
            answers[name].answer or "" if name in answers and answers[name].status == "ok" else ""
            for name in self._by_object
        ]
        references = [[sample.phrase for sample in samples] for samples in self._by_object.values()]
        scores = cider_d(captions, references)
        equal = [
            caption_tokens(caption) in [caption_tokens(text) for text in texts]
            for caption, texts in zip(captions, references, strict=True)
        ]
        figures = {"cider_d": math.fsum(scores) / len(scores), "exact_match": share(equal)}
        return TaskScores(
            self.task,
            self.dataset,
            self.split,
            **count_statuses(answers, len(self._by_object)),
            figures=figures,
            comparable=self.comparable,
        )
