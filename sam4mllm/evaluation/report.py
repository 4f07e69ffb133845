"""The printed report, in percent: our scores beside published ones, and the reliability of the confidence scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sam4mllm.data.registry import DATASETS
from sam4mllm.evaluation.published import PublishedRow, published
from sam4mllm.evaluation.reliability import COVERAGES, ReliabilityReport
from sam4mllm.evaluation.score import Scores

if TYPE_CHECKING:
    from sam4mllm.evaluation.splits import EvaluatedSplit

# Column titles and the fields of Scores, and of PublishedRow if it has them, that they show.
_METRICS = {
    "cIoU": "ciou",
    "gIoU": "giou",
    "N-acc": "n_acc",
    "T-acc": "t_acc",
    "Pr@0.7": "pr_70",
    "Pr@0.8": "pr_80",
    "Pr@0.9": "pr_90",
    "Acc@0.5": "acc_50",
}

# The metrics that papers report on each benchmark, by its protocol.
_HEADLINES = {"refcoco": ("cIoU",), "grefcoco": ("gIoU", "cIoU", "N-acc"), "reasonseg": ("gIoU", "cIoU")}

_PROPERTIES = ("text only", "COCO masks", "source")
"""The titles of the last columns, which are about the published rows."""


def report(ours: Mapping[str, Scores], *, beside_published: bool = True) -> str:
    """Return a table of our rows of one split, by name, above the published rows of the same split.

    Raises:
        ValueError: No rows, or rows of several data sets, splits or protocols.
    """
    splits = {(scores.dataset, scores.split, scores.protocol) for scores in ours.values()}
    if len(splits) != 1:
        raise ValueError(f"a report compares rows of one data set, split and protocol; got {sorted(splits)}")
    dataset, split, protocol = splits.pop()
    lines = [f"{dataset} {split}, protocol {protocol}, percent"]
    lines += [f"{name}: {_counts(scores)}" for name, scores in ours.items()]
    rows = []
    for name, scores in ours.items():
        rows.append([name, *(_percent(getattr(scores, key)) for key in _METRICS.values()), "", "", ""])
    quoted = _published_rows(dataset, split) if beside_published else []
    for row in quoted:
        cells = [_quoted(getattr(row, key, None)) for key in _METRICS.values()]
        rows.append([row.system, *cells, *_properties([row])])
    table = "\n".join([*lines, "", *text_table(["", *_METRICS, *_PROPERTIES], rows, left=3)]) + "\n"
    return table + points_text(ours)


def suite_report(splits: Sequence[Mapping[str, Scores]], *, beside_published: bool = True) -> str:
    """Return a table for each data set, its splits side by side, with the metrics that papers report on it.

    Args:
        splits: Our rows by name, a mapping for each split; the same names and one protocol for all splits of a set.
        beside_published: Whether to print the published rows below ours.

    Raises:
        ValueError: No split, or one without rows.
    """
    if not splits or not all(splits):
        raise ValueError("a report needs splits, each with a row")
    by_dataset: dict[str, list[Mapping[str, Scores]]] = {}
    for ours in splits:
        by_dataset.setdefault(next(iter(ours.values())).dataset, []).append(ours)
    tables = "\n".join(_dataset_report(dataset, each, beside_published) for dataset, each in by_dataset.items())
    rows = {f"{scores.dataset} {scores.split}, {name}": scores for ours in splits for name, scores in ours.items()}
    return tables + points_text(rows)


def evaluation_report(splits: Sequence[EvaluatedSplit], name: str, named: bool, beside_published: bool) -> str:
    """Return the text of an evaluation: tables of scores, and of the reliability of the confidence scores.

    `name` is the name of our rows; `named` is whether a single split was named.
    """
    rows = [split.rows(name) for split in splits]
    if named:
        tables = report(rows[0], beside_published=beside_published)
    else:
        tables = suite_report(rows, beside_published=beside_published)
    reliability = {f"{split.entry.dataset} {split.entry.split_name}": split.reliability for split in splits}
    warnings = [
        f"{split.entry.name}: the confidence scores were calibrated on this split, so their reliability is "
        "overestimated here; measure it on another split\n"
        for split in splits
        if split.entry.name == split.calibrated_on
    ]
    return f"{tables}\n{reliability_text(reliability)}{''.join(warnings)}"


def points_text(rows: Mapping[str, Scores]) -> str:
    """Return a table of the points of each row by its name, after a blank line; no text if no row has points."""
    cells = [
        [
            name,
            *(_percent(getattr(scores, key)) for key in ("points_on", "points_on_chance")),
            *(_percent(getattr(scores, key)) for key in ("points_off", "points_off_chance")),
            f"{scores.points_kept:.1f}",
            "",
        ]
        for name, scores in rows.items()
        if scores.points_kept
    ]
    if not cells:
        return ""
    title = (
        "points, percent: positive points on the object and negative points off it, where the predicted box is right; "
        "chance: random points in the same boxes"
    )
    header = ["", "on", "chance", "off", "chance", "points per object", ""]
    return "\n".join(["", title, "", *text_table(header, cells)]) + "\n"


def reliability_text(reports: Mapping[str, ReliabilityReport]) -> str:
    """Return a table of the reliability of confidence scores, with a row for each split by its name."""
    rows = []
    for split, reliability in reports.items():
        objects, coverage = reliability.objects, reliability.coverage
        ece = ["-", "-"] if objects is None else [str(objects.n), _percent(objects.ece)]
        kept = ["-"] * len(COVERAGES) if coverage is None else [_percent(point.ciou) for point in coverage]
        rows.append([split, *ece, *kept, ""])
    header = ["", "objects", "ECE", *(f"{100 * coverage:.0f} %" for coverage in COVERAGES), ""]
    title = (
        "reliability of confidence scores, percent: ECE over objects; cIoU of the most confident answers, by the share "
        "that is kept"
    )
    return "\n".join([title, "", *text_table(header, rows)]) + "\n"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a table without its empty columns.

    The first and the last `left` columns are aligned to the left, the others to the right.
    """
    kept = [column for column in range(len(header)) if any(row[column] not in ("", "-") for row in rows)]
    widths = {column: max(len(header[column]), *(len(row[column]) for row in rows)) for column in kept}
    lines = []
    for row in (header, *rows):
        cells = [
            row[column].ljust(widths[column])
            if column == 0 or column >= len(header) - left
            else row[column].rjust(widths[column])
            for column in kept
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * widths[column] for column in kept))
    return lines


def _dataset_report(dataset: str, splits: Sequence[Mapping[str, Scores]], beside_published: bool) -> str:
    # 1. The heading and the counts. Baselines are computed from the same answers, so one line serves all rows of a
    # split, unless an image became unreadable in between.
    protocol = next(iter(splits[0].values())).protocol
    titles = _HEADLINES[protocol]
    by_split = {next(iter(ours.values())).split: ours for ours in splits}
    lines = [f"{dataset}, protocol {protocol}, percent"]
    for split, ours in by_split.items():
        counts = {name: _counts(scores) for name, scores in ours.items()}
        if len(set(counts.values())) == 1:
            counts = {"": next(iter(counts.values()))}
        lines += [f"{split}, {name}: {count}" if name else f"{split}: {count}" for name, count in counts.items()]

    # 2. Our rows.
    rows = []
    for name in dict.fromkeys(name for ours in splits for name in ours):
        cells = [
            _percent(getattr(ours[name], _METRICS[title])) if name in ours else "-"
            for ours in by_split.values()
            for title in titles
        ]
        rows.append([name, *cells, "", "", ""])

    # 3. The published rows, one for each system.
    quoted = [row for split in by_split for row in _published_rows(dataset, split)] if beside_published else []
    for system in dict.fromkeys(row.system for row in quoted):
        own = {row.split: row for row in quoted if row.system == system}
        cells = [
            _quoted(getattr(own[split], _METRICS[title])) if split in own else "-"
            for split in by_split
            for title in titles
        ]
        rows.append([system, *cells, *_properties(list(own.values()))])
    header = ["", *(f"{split} {title}" for split in by_split for title in titles), *_PROPERTIES]
    return "\n".join([*lines, "", *text_table(header, rows, left=3)]) + "\n"


def _published_rows(dataset: str, split: str) -> list[PublishedRow]:
    row = DATASETS.get(dataset)
    return [] if row is None or row.published is None else published(row.published, split)


def _properties(rows: Sequence[PublishedRow]) -> list[str]:
    """Return the last cells of a system's row: whether it is text only, whether it saw COCO masks, and its sources."""
    words = {True: "yes", False: "no", None: "?"}
    return [words[rows[0].text_only], words[rows[0].coco_masks], "; ".join(dict.fromkeys(row.source for row in rows))]


def _counts(scores: Scores) -> str:
    """Return how many sentences the metrics are over, and how many of them have no usable answer."""
    errors = f", {scores.errors} errors" if scores.errors else ""
    cut_off = f" ({scores.cut_off} cut off)" if scores.cut_off else ""
    return f"{scores.n} queries, {scores.missing} without prediction, {scores.malformed} malformed{cut_off}{errors}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _quoted(percent: float | None) -> str:
    """Return the figure as it is printed in its source, with one or two decimals."""
    return "-" if percent is None else f"{percent:.2f}".removesuffix("0")
