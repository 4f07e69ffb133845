"""Tables of the experiment "methods": figures over seeds, and paired differences between two rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from methods_rows import ORACLE, Row

Rows = Mapping[str, Mapping[int, Row]]
"""The rows by name and seed."""

Pairs = Sequence[tuple[str, str]]
"""Names of rows whose difference is computed: the first minus the second."""

METRICS = {
    "res_ciou": "RES cIoU",
    "res_acc_50": "Acc@0.5",
    "gres_ciou": "gRES cIoU",
    "gres_giou": "gRES gIoU",
    "gres_n_acc": "N-acc",
    "reason_ciou": "Reason cIoU",
    "reason_giou": "Reason gIoU",
    "malformed": "malformed",
}
"""The figures that are compared between rows, with their titles."""

SHARE = "share_of_oracle"
_TITLES = METRICS | {
    "points_an_object": "points",
    "points_on": "points on",
    "points_on_chance": "chance",
    "points_off": "points off",
    "points_off_chance": "chance",
    SHARE: "of oracle",
    "seconds_a_query": "s/query",
}
# The figures that are not in percent, with their decimals.
_DECIMALS = {"points_an_object": 1, SHARE: 3, "seconds_a_query": 3}

DIFFERENCES = (
    ("PPG", "base"),
    ("PPG", "box alone"),
    ("PPG", "PPG without its points"),
    ("PPG", "PPG, random group"),
    ("PQPP", "base"),
    ("PQPP", "box alone"),
    ("PQPP", "PQPP without its points"),
    ("PQPP, single", "PQPP, single without its points"),
)
"""The pairs of rows whose difference is computed seed by seed: the first minus the second."""


@dataclass(frozen=True)
class Summary:
    """A figure over the seeds that have it: mean, sample standard deviation (0 for one seed), and the values by seed.

    `same_sign` is the number of values with the sign of the mean, 0 for a mean of 0.
    """

    mean: float
    sd: float
    same_sign: int
    by_seed: dict[int, float]


def summarize(values: Mapping[int, float | None]) -> Summary | None:
    """Summarize the values by seed; None if no seed has one."""
    known = {seed: value for seed, value in values.items() if value is not None}
    if not known:
        return None
    mean = fmean(known.values())
    sd = stdev(known.values()) if len(known) > 1 else 0.0
    return Summary(mean, sd, sum(value * mean > 0 for value in known.values()), known)


def summarize_rows(rows: Rows) -> dict[str, dict[str, Summary | None]]:
    """Summarize each figure of each row, and the share of the oracle's RES cIoU that the row has for the same seed."""
    summaries = {}
    for name, by_seed in rows.items():
        figures = {seed: asdict(row) for seed, row in by_seed.items()}
        for seed, row in by_seed.items():
            oracle = rows.get(ORACLE, {}).get(seed)
            figures[seed][SHARE] = None if oracle is None else _ratio(row.res_ciou, oracle.res_ciou)
        summaries[name] = {key: summarize({seed: each[key] for seed, each in figures.items()}) for key in _TITLES}
    return summaries


def differences(
    rows: Mapping[str, Mapping[int, object]], pairs: Pairs = DIFFERENCES, metrics: Iterable[str] = METRICS
) -> dict[str, dict[str, Summary | None]]:
    """Summarize the paired differences of `metrics` for each pair of rows that shares a seed."""
    summaries = {}
    for first, second in pairs:
        firsts, seconds = rows.get(first, {}), rows.get(second, {})
        if shared := sorted(firsts.keys() & seconds.keys()):
            summaries[f"{first} - {second}"] = {
                key: summarize(
                    {seed: _minus(getattr(firsts[seed], key), getattr(seconds[seed], key)) for seed in shared}
                )
                for key in metrics
            }
    return summaries


def tables(rows: Rows, pairs: Pairs = DIFFERENCES) -> list[str]:
    """Return both tables as Markdown: figures and paired differences, as mean ± standard deviation over the seeds."""
    lines = _header("", list(_TITLES.values()))
    for name, figures in summarize_rows(rows).items():
        cells = [cell(summary, _DECIMALS.get(key)) for key, summary in figures.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *difference_table(rows, pairs)]


def difference_table(
    rows: Mapping[str, Mapping[int, object]], pairs: Pairs, metrics: Mapping[str, str] = METRICS
) -> list[str]:
    """Return the paired differences as a Markdown table; `metrics` are their figures with their titles."""
    lines = _header("difference", list(metrics.values()))
    for name, figures in differences(rows, pairs, metrics).items():
        cells = [_difference_cell(summary) for summary in figures.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def to_json(rows: Rows, pairs: Pairs = DIFFERENCES) -> dict[str, Any]:
    """Return the rows of every seed, and the summaries of rows and differences, as plain JSON."""
    return {
        "rows": {name: {seed: asdict(row) for seed, row in by_seed.items()} for name, by_seed in rows.items()},
        "summaries": plain(summarize_rows(rows)),
        "differences": plain(differences(rows, pairs)),
    }


def plain(summaries: Mapping[str, Mapping[str, Summary | None]]) -> dict[str, Any]:
    """Return summaries as plain JSON."""
    return {
        name: {key: None if each is None else asdict(each) for key, each in figures.items()}
        for name, figures in summaries.items()
    }


def _header(first: str, titles: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]


def cell(summary: Summary | None, decimals: int | None) -> str:
    """Return mean ± standard deviation, in percent if `decimals` is None."""
    if summary is None:
        return "-"
    factor, places = (100, 1) if decimals is None else (1, decimals)
    mean = f"{factor * summary.mean:.{places}f}"
    return mean if len(summary.by_seed) == 1 else f"{mean} ± {factor * summary.sd:.{places}f}"


def _difference_cell(summary: Summary | None) -> str:
    """Return mean ± standard deviation in percentage points, and the number of seeds that have the mean's sign."""
    if summary is None:
        return "-"
    mean, seeds = f"{100 * summary.mean:+.1f}", len(summary.by_seed)
    return mean if seeds == 1 else f"{mean} ± {100 * summary.sd:.1f} ({summary.same_sign}/{seeds})"


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _ratio(part: float | None, total: float | None) -> float | None:
    return None if part is None or not total else part / total
