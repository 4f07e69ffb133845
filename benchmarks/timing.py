"""Times of several ways to do the same work, in one run: what slows the machine down meets all of them.

This module does not know what is timed.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def take_turns(
    ways: Mapping[str, Callable[[], Result]], repeats: int, device: str
) -> tuple[dict[str, float], dict[str, Result]]:
    """Seconds of each way, the shortest of `repeats` runs after one that does not count, and the way's last result."""
    seconds = dict.fromkeys(ways, float("inf"))
    results: dict[str, Result] = {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = now(device)
            results[name] = way()
            taken = now(device) - start
            if turn:
                seconds[name] = min(seconds[name], taken)
    return seconds, results


def machine(device: str) -> dict[str, Any]:
    """What the times were taken on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {"device": device, "processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def write_json(record: Mapping[str, Any], place: Path | None) -> None:
    """The record as a file, with its folder; nothing for None."""
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
