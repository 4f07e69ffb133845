"""What the tasks that are scored without masks have in common: their scores, and a split that is read for a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypedDict

from sam4mllm.evaluation.tasks.answers import AnswerLine, TaskQuery

TaskName = Literal["rec", "region-caption", "pope", "grounded-caption"]


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The metrics of a split under a task.

    Attributes:
        task, dataset, split: Their names.
        n: The number of queries.
        missing, malformed, errors: How many of them have no prediction, one that could not be parsed, or the status
            "error"; they count as wrong.
        figures: The metrics by name, as fractions from 0 to 1 (CIDEr-D: 0 to 10), and counts; None where a metric is
            not defined for the data.
        comparable: Whether published results are on the same data under the same protocol.
    """

    task: TaskName
    dataset: str
    split: str
    n: int
    missing: int
    malformed: int
    errors: int
    figures: Mapping[str, float | None]
    comparable: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `score --json` writes."""
        counts = {"n": self.n, "missing": self.missing, "malformed": self.malformed, "errors": self.errors}
        return {"task": self.task, "dataset": self.dataset, "split": self.split, **counts, **self.figures}


class StatusCounts(TypedDict):
    """The counts of `TaskScores`."""

    n: int
    missing: int
    malformed: int
    errors: int


def count_statuses(answers: Mapping[str, AnswerLine], n: int) -> StatusCounts:
    """Return the counts of `TaskScores` for the answers to `n` queries."""
    statuses = [line.status for line in answers.values()]
    return {
        "n": n,
        "missing": n - len(answers),
        "malformed": statuses.count("malformed"),
        "errors": statuses.count("error"),
    }


class TaskSplit(Protocol):
    """A split that is read for a task: what is asked, and how the answers are scored."""

    task: ClassVar[TaskName]
    """The task's name, as `--task` has it."""
    needs: ClassVar[str]
    """The field of an `AnswerLine` that is scored."""

    def queries(self) -> list[TaskQuery]:
        """Return what the model is asked, in the order of the data set."""
        ...

    def score(self, lines: Iterable[AnswerLine | Mapping[str, Any]]) -> TaskScores:
        """Score one line per query, in any order.

        Raises:
            PredictionsError: Ids without a query, repeated ids, or lines without what the task scores.
        """
        ...
