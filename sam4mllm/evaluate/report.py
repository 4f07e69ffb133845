"""The report: our figures beside published ones, and how far scores can be trusted, as tables of text, in percent.

This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sam4mllm.evaluate.published import published
from sam4mllm.evaluate.reliability import COVERAGES, ReliabilityReport
from sam4mllm.evaluate.score import Scores

if TYPE_CHECKING:
    from sam4mllm.evaluate.evaluate import EvaluatedSplit

# Column titles and the fields of Scores, and of PublishedRow where it has them, that they show.
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

# What the papers print of each benchmark, by the protocol that belongs to it.
_HEADLINES = {"refcoco": ("cIoU",), "grefcoco": ("gIoU", "cIoU", "N-acc"), "reasonseg": ("gIoU", "cIoU")}


def report(ours: Mapping[str, Scores], *, beside_published: bool = True) -> str:
    """Our rows of one split, by name, and below them the published rows of the same split; the counts stand above.

    Raises:
        ValueError: no rows, or rows of several data sets or splits, which no one table can compare.
    """
    splits = {(scores.dataset, scores.split, scores.protocol) for scores in ours.values()}
    if len(splits) != 1:
        raise ValueError(f"a report compares rows of one data set, split and protocol; got {sorted(splits)}")
    dataset, split, protocol = splits.pop()
    lines = [f"{dataset} {split}, protocol {protocol}, percent"]
    lines += [f"{name}: {_counts(scores)}" for name, scores in ours.items()]
    rows = [[name, *(_percent(getattr(scores, key)) for key in _FIGURES.values()), ""] for name, scores in ours.items()]
    for row in published(dataset, split) if beside_published else ():
        printed = [_quoted(getattr(row, key, None)) for key in _FIGURES.values()]
        rows.append([row.system, *printed, row.source])
    return "\n".join([*lines, "", *text_table(["", *_FIGURES, "source"], rows)]) + "\n"


def suite_report(splits: Sequence[Mapping[str, Scores]], *, beside_published: bool = True) -> str:
    """A table for each data set, its splits side by side, with the figures that papers print of it.

    Args:
        splits: our rows by name, a mapping for each split; the same names and one protocol for all splits of a set.
        beside_published: whether the published rows stand below ours.

    Raises:
        ValueError: no split, or one without rows.
    """
    if not splits or not all(splits):
        raise ValueError("a report needs splits, each with a row")
    by_dataset: dict[str, list[Mapping[str, Scores]]] = {}
    for ours in splits:
        by_dataset.setdefault(next(iter(ours.values())).dataset, []).append(ours)
    return "\n".join(_dataset_report(dataset, each, beside_published) for dataset, each in by_dataset.items())


def report_of(splits: Sequence[EvaluatedSplit], name: str, named: bool, beside_published: bool) -> str:
    """All that is printed of an evaluation; `name` is our rows', `named` says that one split was named and no more."""
    rows = [split.rows(name) for split in splits]
    if named:
        tables = report(rows[0], beside_published=beside_published)
    else:
        tables = suite_report(rows, beside_published=beside_published)
    trusts = {f"{split.entry.dataset} {split.entry.split_name}": split.reliability for split in splits}
    flattered = [split.entry.name for split in splits if split.entry.name == split.calibrated_on]
    words = "the scores were fitted to its answers, so this flatters them; ask it on another split"
    warning = "".join(f"{name}: {words}\n" for name in flattered)
    return f"{tables}\n{reliability_text(trusts)}{warning}"


def reliability_text(trusts: Mapping[str, ReliabilityReport]) -> str:
    """How far the scores of each split can be trusted: a row for each, by its name."""
    rows = []
    for split, reliability in trusts.items():
        objects = (
            ["-", "-"]
            if reliability.objects is None
            else [str(reliability.objects.n), _percent(reliability.objects.ece)]
        )
        kept = (
            ["-"] * len(COVERAGES)
            if reliability.coverage is None
            else [_percent(each.ciou) for each in reliability.coverage]
        )
        rows.append([split, *objects, *kept, ""])
    header = ["", "objects", "ECE", *(f"{100 * coverage:.0f} %" for coverage in COVERAGES), ""]
    title = "trust in scores, percent: ECE over objects; cIoU of the surest answers, by the share that is kept"
    return "\n".join([title, "", *text_table(header, rows)]) + "\n"


def _dataset_report(dataset: str, splits: Sequence[Mapping[str, Scores]], beside_published: bool) -> str:
    protocol = next(iter(splits[0].values())).protocol
    titles = _HEADLINES[protocol]
    by_split = {next(iter(ours.values())).split: ours for ours in splits}
    lines = [f"{dataset}, protocol {protocol}, percent"]
    for split, ours in by_split.items():
        # Baselines are made of the same answers, so one line says it for all, unless an image was lost in between.
        counts = {name: _counts(scores) for name, scores in ours.items()}
        agreed = len(set(counts.values())) == 1
        told = {split: next(iter(counts.values()))} if agreed else {f"{split}, {name}": counts[name] for name in counts}
        lines += [f"{where}: {count}" for where, count in told.items()]
    rows = []
    for name in dict.fromkeys(name for ours in splits for name in ours):
        cells = [
            _percent(getattr(ours[name], _FIGURES[title])) if name in ours else "-"
            for ours in by_split.values()
            for title in titles
        ]
        rows.append([name, *cells, ""])
    quoted = [row for split in by_split for row in published(dataset, split)] if beside_published else []
    for system in dict.fromkeys(row.system for row in quoted):
        own = {row.split: row for row in quoted if row.system == system}
        cells = [
            _quoted(getattr(own[split], _FIGURES[title])) if split in own else "-"
            for split in by_split
            for title in titles
        ]
        rows.append([system, *cells, "; ".join(dict.fromkeys(row.source for row in own.values()))])
    header = ["", *(f"{split} {title}" for split in by_split for title in titles), "source"]
    return "\n".join([*lines, "", *text_table(header, rows)]) + "\n"


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


def _counts(scores: Scores) -> str:
    """How many sentences the figures rest on, and how many of them have no answer that can be read."""
    errors = f", {scores.errors} errors" if scores.errors else ""
    return f"{scores.n} queries, {scores.missing} without prediction, {scores.malformed} malformed{errors}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _quoted(percent: float | None) -> str:
    """As it is printed there: one digit behind the point, or two."""
    return "-" if percent is None else f"{percent:.2f}".removesuffix("0")
