"""POPE (arXiv 2305.10355): yes/no questions about whether an object is in the image.

An answer is parsed by the rules of the official evaluation: only the text before the first full stop counts; without
its commas, it is split at spaces; it is "no" if one of the words is `No`, `no` or `not`, and "yes" otherwise.

`accuracy`, `precision`, `recall` and `f1` take "yes" as the positive class, and `yes` is the share of answers "yes". A
question without an answer counts as answered wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import read_dialogues
from sam4mllm.errors import DataError
from sam4mllm.evaluation.tasks.answers import AnswerLine, TaskQuery, answers_by_id
from sam4mllm.evaluation.tasks.base import TaskName, TaskScores, count_statuses
from sam4mllm.evaluation.tasks.published import is_published_pope


def answers_yes(text: str) -> bool:
    """Return whether an answer is "yes" by POPE's rules."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in ("No", "no", "not") for word in words)


@dataclass(frozen=True, slots=True)
class _Question:
    id: str
    dialogue: Dialogue
    text: str
    yes: bool


class Pope:
    """A file of yes/no questions.

    Raises:
        DataError: A dialogue is not one question with the answer yes or no.
    """

    task: ClassVar[TaskName] = "pope"
    needs: ClassVar[str] = "answer"

    def __init__(self, dialogues: Sequence[Dialogue], dataset: str, split: str, *, limited: bool = False) -> None:
        self._questions = [_question(dialogue) for dialogue in dialogues]
        self.dataset, self.split = dataset, split
        images = len({each.dialogue.image for each in self._questions})
        truth = [each.yes for each in self._questions]
        self.comparable = not limited and is_published_pope(split, truth.count(True), truth.count(False), images)

    @classmethod
    def read(cls, entry: DataEntry) -> Pope:
        """Read the file of an entry.

        Raises:
            DataError: The data set is not of yes/no questions, or cannot be read.
        """
        if not entry.is_chat:
            raise DataError(f"{entry.name}: has no yes/no questions; name --dataset pope with --path FILE")
        return cls(read_dialogues(entry), entry.dataset, entry.split_name, limited=entry.limit is not None)

    def queries(self) -> list[TaskQuery]:
        return [TaskQuery(each.id, each.dialogue.image, each.text) for each in self._questions if each.dialogue.image]

    def score(self, lines: Iterable[AnswerLine | Mapping[str, Any]]) -> TaskScores:
        ids = [each.id for each in self._questions]
        answers = answers_by_id(lines, ids, f"{self.dataset} {self.split}", self.needs)
        pairs = []
        for each in self._questions:
            line = answers.get(each.id)
            yes = answers_yes(line.answer or "") if line is not None and line.status == "ok" else not each.yes
            pairs.append((yes, each.yes))
        return TaskScores(
            self.task,
            self.dataset,
            self.split,
            **count_statuses(answers, len(ids)),
            figures=pope_figures(pairs),
            comparable=self.comparable,
        )


def pope_figures(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float | None]:
    """Return the metrics of (answered yes, annotated yes) pairs; None where a denominator is 0."""
    true_yes = sum(answer and truth for answer, truth in pairs)
    answered_yes, annotated_yes = sum(answer for answer, _ in pairs), sum(truth for _, truth in pairs)
    precision = true_yes / answered_yes if answered_yes else None
    recall = true_yes / annotated_yes if annotated_yes else None
    both = answered_yes + annotated_yes
    return {
        "accuracy": sum(answer == truth for answer, truth in pairs) / len(pairs) if pairs else None,
        "precision": precision,
        "recall": recall,
        "f1": 2 * true_yes / both if both else None,
        "yes": answered_yes / len(pairs) if pairs else None,
    }


def _question(dialogue: Dialogue) -> _Question:
    if len(dialogue.exchanges) != 1 or dialogue.exchanges[0][1] not in ("yes", "no") or dialogue.image is None:
        raise DataError(
            f"{dialogue.where}: a question of this task is about an image and has the answer yes or no; found "
            f"{dialogue.exchanges!r:.80}"
        )
    ((text, label),) = dialogue.exchanges
    return _Question(dialogue.id, dialogue, text, label == "yes")
