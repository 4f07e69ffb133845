"""Time several variants of the same work by turns, so that other load on the machine affects all of them.

Ratios are computed within each turn. Their median and extremes are reported, because the absolute times of a shared
machine vary more than the ratios.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from sam4mllm.errors import Sam4mllmError

Result = TypeVar("Result")


class DifferentResultsError(Sam4mllmError):
    """A variant's results are not the baseline's, so their times cannot be compared."""


class Spread(NamedTuple):
    """The median and the extremes of a figure over the turns."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Summarize the values of all turns."""
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One variant of some work, beside the first variant of the same work, its baseline.

    Attributes:
        work: What was done, on which model.
        variant: The implementation.
        item: What is counted, such as "object".
        items: The number of items in each turn.
        seconds: The time of each turn.
        ratio: The baseline's time divided by this variant's, turn by turn: 2.0 is twice as fast.
        same: The share of results that equal the baseline's; None where the results are not compared.
        notes: Further figures, by name.
    """

    work: str
    variant: str
    item: str
    items: int
    seconds: tuple[float, ...]
    ratio: Spread
    same: float | None = None
    notes: Mapping[str, Any] | None = None

    @property
    def ms_an_item(self) -> float:
        """The median time per item in milliseconds."""
        return 1000 * statistics.median(self.seconds) / self.items


def compare(
    work: str,
    variants: Mapping[str, Callable[[], Result]],
    *,
    items: int,
    item: str,
    repeats: int,
    device: str,
    same: Callable[[Result, Result], float] | None = None,
    least_same: float = 1.0,
    notes: Callable[[Result, Result], Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Check that all variants give the results of the first one, the baseline, then time them by turns.

    Args:
        work: What is done, on which model.
        variants: The implementations by name.
        items: The items that one run of a variant processes.
        item: What an item is called, in the singular.
        repeats: The turns that are timed. One run of each variant before them is the warm-up; its results are compared.
        device: The device that computes.
        same: Returns the share of equal results, given the baseline's and those of a variant.
        least_same: The least share that is accepted.
        notes: Returns further figures, given the baseline's results and those of a variant.

    Raises:
        DifferentResultsError: The share of equal results is below `least_same`.
    """
    results = {name: variant() for name, variant in variants.items()}
    baseline = next(iter(variants))
    shares = shares_of(work, results, same, least_same) if same else {}
    figures = {name: notes(results[baseline], result) if notes else None for name, result in results.items()}
    # The results of a large run are not kept while the variants are timed.
    results.clear()
    return rows_of(work, take_turns(variants, repeats, device), items, item, shares, figures)


def shares_of(
    work: str, results: Mapping[str, Result], same: Callable[[Result, Result], float], least: float = 1.0
) -> dict[str, float]:
    """Return the share of each variant's results that equal those of the first; raises the error of `compare`."""
    baseline = next(iter(results))
    shares = {name: same(results[baseline], result) for name, result in results.items()}
    for name, share in shares.items():
        if not share >= least:
            raise DifferentResultsError(
                f"{work}: {100 * share:.1f} % of the results of {name!r} are those of {baseline!r}; "
                f"at least {100 * least:.1f} % must be"
            )
    return shares


def rows_of(
    work: str,
    seconds: Mapping[str, Sequence[float]],
    items: int,
    item: str,
    same: Mapping[str, float | None] | None = None,
    notes: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> list[Row]:
    """Return the rows of variants by their seconds in each turn; the first variant is the baseline."""
    baseline = next(iter(seconds.values()))
    return [
        Row(
            work,
            name,
            item,
            items,
            tuple(times),
            Spread.of([base / own for base, own in zip(baseline, times, strict=True)]),
            (same or {}).get(name),
            (notes or {}).get(name),
        )
        for name, times in seconds.items()
    ]


def take_turns(variants: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the time in seconds of each variant in each of `repeats` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            start = now(device)
            variant()
            seconds[name].append(now(device) - start)
    return seconds


def now(device: str) -> float:
    """Return the time in seconds after all work of the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine(device: str) -> dict[str, Any]:
    """Return the hardware, the number of threads and the torch version of the measurement."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": device, "processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    """Return the processor's model name where Linux states it, else what Python knows about it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or "cpu"
