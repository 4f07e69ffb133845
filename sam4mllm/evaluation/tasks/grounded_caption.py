"""Grounded captions: does a model that describes an image mark the things that it names where they are?

The model is asked once for each image; the query has the id of the image's first caption. The annotated phrases are
those of all captions of the image, each with its boxes. Boxes are compared at IoU > 0.5:

- `recall_any`: the share of annotated phrases one of whose boxes is marked in the answer, whatever its words.
- `recall_merged`: the box around all boxes of the annotated phrase is that around all boxes of a phrase of the answer.
- `recall_phrase`: one of the phrase's boxes is marked in the answer behind a phrase with the same last word.
- `precision`: the share of marked boxes that are a box of an annotated phrase; None if nothing is marked.

Last words are compared in lower case; they are the noun in most phrases ("a blue shirt"). These are protocols of this
program; phrase grounding, in which the annotated phrases are given, is the task `rec` on Flickr30k Entities.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.reading import read_captions
from sam4mllm.errors import DataError
from sam4mllm.evaluation.metrics import share
from sam4mllm.evaluation.tasks.answers import AnswerLine, MarkedPhrase, TaskQuery, answers_by_id
from sam4mllm.evaluation.tasks.base import TaskName, TaskScores, count_statuses
from sam4mllm.evaluation.tasks.rec import enclosing_box, is_correct
from sam4mllm.geometry import Box
from sam4mllm.prompts.questions import ask_grounded_caption

_WORD = re.compile(r"\w+(?:['-]\w+)*")
_CLAUSE_END = re.compile(r"[.,;:!?]")


@dataclass(frozen=True, slots=True)
class _Image:
    id: str
    path: Path
    phrases: tuple[MarkedPhrase, ...]


class GroundedCaptions:
    """A split of images with grounded captions.

    Raises:
        DataError: No phrase has a box.
    """

    task: ClassVar[TaskName] = "grounded-caption"
    needs: ClassVar[str] = "phrases"

    def __init__(self, captions: Sequence[GroundedCaption], dataset: str, split: str) -> None:
        by_image: dict[Path, list[GroundedCaption]] = {}
        for caption in captions:
            by_image.setdefault(caption.image, []).append(caption)
        self._images = [_Image(each[0].id, path, _annotated(each)) for path, each in by_image.items()]
        if not any(image.phrases for image in self._images):
            raise DataError(f"{dataset} {split}: no phrase of a caption has a box")
        self.dataset, self.split = dataset, split

    @classmethod
    def read(cls, entry: DataEntry) -> GroundedCaptions:
        """Read the grounded captions of an entry."""
        return cls(read_captions(entry), entry.dataset, entry.split_name)

    def queries(self) -> list[TaskQuery]:
        return [TaskQuery(image.id, image.path, ask_grounded_caption()) for image in self._images]

    def score(self, lines: Iterable[AnswerLine | Mapping[str, Any]]) -> TaskScores:
        ids = [image.id for image in self._images]
        answers = answers_by_id(lines, ids, f"{self.dataset} {self.split}", self.needs)
        facts: dict[str, list[bool]] = {"recall_any": [], "recall_merged": [], "recall_phrase": [], "precision": []}
        for image in self._images:
            line = answers.get(image.id)
            marked = line.phrases if line is not None and line.status == "ok" and line.phrases else ()
            for name, values in grounding_facts(marked, image.phrases).items():
                facts[name] += values
        return TaskScores(
            self.task,
            self.dataset,
            self.split,
            **count_statuses(answers, len(ids)),
            figures={"phrases": len(facts["recall_any"]), **{name: share(values) for name, values in facts.items()}},
        )


def grounding_facts(marked: Sequence[MarkedPhrase], annotated: Sequence[MarkedPhrase]) -> dict[str, list[bool]]:
    """Return for each recall which annotated phrases are recalled, and for precision which marked boxes are right."""
    boxes = [box for each in marked for box in each.boxes]
    groups = [enclosing_box(each.boxes) for each in marked if each.boxes]

    def with_same_noun(phrase: MarkedPhrase) -> list[Box]:
        noun = _last_word(phrase.phrase)
        return [box for each in marked if _last_word(each.phrase) == noun for box in each.boxes]

    return {
        "recall_any": [any(is_correct(box, each.boxes) for box in boxes) for each in annotated],
        "recall_merged": [is_correct(enclosing_box(each.boxes), groups) for each in annotated],
        "recall_phrase": [any(is_correct(box, each.boxes) for box in with_same_noun(each)) for each in annotated],
        "precision": [any(is_correct(box, each.boxes) for each in annotated) for box in boxes],
    }


def marked_phrases(text: str, marks: Sequence[tuple[int, Box]]) -> tuple[MarkedPhrase, ...]:
    """Return the phrases of a generated caption that have boxes, given (position in the text behind a phrase, box).

    A phrase begins behind the previous phrase or the last punctuation mark before it. Several boxes at one position are
    those of one phrase.

    Examples:
        >>> marked_phrases("A red ring, on a star.", [(10, Box(0, 0, 2, 2)), (21, Box(1, 1, 9, 9))])[1].phrase
        'on a star'
    """
    ends: dict[int, list[Box]] = {}
    for end, box in sorted(marks, key=lambda mark: mark[0]):
        ends.setdefault(end, []).append(box)
    phrases, start = [], 0
    for end, boxes in ends.items():
        phrase = _CLAUSE_END.split(text[start:end].rstrip(" .,;:!?"))[-1].strip()
        phrases.append(MarkedPhrase(phrase, tuple(boxes)))
        start = end
    return tuple(phrases)


def _annotated(captions: Iterable[GroundedCaption]) -> tuple[MarkedPhrase, ...]:
    """Return the phrases of an image's captions with their boxes, each phrase with equal boxes once."""
    phrases = [
        MarkedPhrase(caption.phrase(mention), tuple(item.box for item in mention.objects))
        for caption in captions
        for mention in caption.mentions
    ]
    return tuple(dict.fromkeys(phrases))


def _last_word(phrase: str) -> str:
    words = _WORD.findall(phrase.lower())
    return words[-1] if words else ""
