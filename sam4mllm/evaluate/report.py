"""The report: our figures beside published ones as a table of text, in percent. This module measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sam4mllm.evaluate.published import published
from sam4mllm.evaluate.score import Scores

# Column titles and the fields of Scores that they show.
_FIGURES = {
    "cIoU": "ciou",
    "gIoU": "giou",
    "N-acc": "n_acc",
    "T-acc": "t_acc",
    "Pr@0.7": "pr_70",
    "Pr@0.8": "pr_80",
    "Pr@0.9": "pr_90",
    "Acc@0.5": "acc_50",
}


def report(ours: Mapping[str, Scores], *, beside_published: bool = True) -> str:
    """Our rows, by name, and below them the published rows of the same split; the counts stand in the lines above.

    Raises:
        ValueError: no rows, or rows of several data sets or splits, which no one table can compare.
    """
    splits = {(scores.dataset, scores.split, scores.protocol) for scores in ours.values()}
    if len(splits) != 1:
        raise ValueError(f"a report compares rows of one data set, split and protocol; got {sorted(splits)}")
    dataset, split, protocol = splits.pop()
    lines = [f"{dataset} {split}, protocol {protocol}, percent"]
    for name, scores in ours.items():
        lines.append(f"{name}: {scores.n} queries, {scores.missing} without prediction, {scores.malformed} malformed")
    rows = [[name, *(_percent(getattr(scores, key)) for key in _FIGURES.values()), ""] for name, scores in ours.items()]
    for row in published(dataset, split) if beside_published else ():
        figures = {"cIoU": row.ciou, "gIoU": row.giou, "N-acc": row.n_acc}
        printed = ["-" if figures.get(title) is None else f"{figures[title]:g}" for title in _FIGURES]
        rows.append([row.system, *printed, row.source])
    return "\n".join([*lines, "", *text_table(["", *_FIGURES, "source"], rows)]) + "\n"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: first and last column to the left, figures to the right; columns that say nothing left out."""
    kept = [column for column in range(len(header)) if any(row[column] not in ("", "-") for row in rows)]
    widths = {column: max(len(header[column]), *(len(row[column]) for row in rows)) for column in kept}
    lines = []
    for row in (header, *rows):
        cells = [
            row[column].ljust(widths[column]) if column in (0, len(header) - 1) else row[column].rjust(widths[column])
            for column in kept
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * widths[column] for column in kept))
    return lines


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
