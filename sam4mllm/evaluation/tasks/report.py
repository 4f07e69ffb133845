"""The printed report of a task: a table of our figures above published ones, in percent."""

from __future__ import annotations

from collections.abc import Mapping

from sam4mllm.evaluation.report import text_table
from sam4mllm.evaluation.tasks.base import TaskScores
from sam4mllm.evaluation.tasks.published import published_task_rows

# The columns of each task: their titles, and the names of the figures.
_COLUMNS: dict[str, dict[str, str]] = {
    "rec": {"Acc@0.5": "acc_50", "any box": "acc_50_any", "merged box": "acc_50_merged"},
    "region-caption": {"CIDEr-D": "cider_d", "exact match": "exact_match", "METEOR": "meteor"},
    "pope": {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "F1": "f1", "yes": "yes"},
    "grounded-caption": {
        "recall, any box": "recall_any",
        "merged box": "recall_merged",
        "by phrase": "recall_phrase",
        "precision": "precision",
    },
}


_NOTES = {"region-caption": "; CIDEr-D x 100, on tokens by rules for those of Stanford's PTBTokenizer 3.4.1"}


def task_report(rows: Mapping[str, TaskScores]) -> str:
    """Return a table of our rows of one split, by name, above the published rows on the same data.

    METEOR is a column of published rows alone.

    Raises:
        ValueError: No rows, or rows of several splits or tasks.
    """
    splits = {(scores.task, scores.dataset, scores.split) for scores in rows.values()}
    if len(splits) != 1:
        raise ValueError(f"a report compares rows of one task, data set and split; got {sorted(splits)}")
    task, dataset, split = splits.pop()
    columns = _COLUMNS[task]
    lines = [f"{task}, {dataset} {split}, percent{_NOTES.get(task, '')}"]
    lines += [f"{name}: {_counts(scores)}" for name, scores in rows.items()]
    table = [
        [name, *(_percent(scores.figures.get(key)) for key in columns.values()), ""] for name, scores in rows.items()
    ]
    if all(scores.comparable for scores in rows.values()):
        for row in published_task_rows(task, dataset, split):
            table.append([row.system, *(_quoted(row.figures.get(key)) for key in columns.values()), row.source])
    return "\n".join([*lines, "", *text_table(["", *columns, "source"], table)]) + "\n"


def _counts(scores: TaskScores) -> str:
    """Return how many queries the figures are over, and how many of them have no usable answer."""
    malformed = f", {scores.malformed} malformed" if scores.task == "rec" else ""
    errors = f", {scores.errors} errors" if scores.errors else ""
    phrases = f", {scores.figures['phrases']:.0f} phrases" if "phrases" in scores.figures else ""
    return f"{scores.n} queries{phrases}, {scores.missing} without prediction{malformed}{errors}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _quoted(percent: float | None) -> str:
    """Return the figure as it is printed in its source, with one or two decimals."""
    return "-" if percent is None else f"{percent:.2f}".removesuffix("0")
