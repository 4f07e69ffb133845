"""Time several variants of the same work by turns, so that other load on the machine affects all of them."""

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
    variants: Mapping[str, Callable[[], Result]], repeats: int, device: str
) -> tuple[dict[str, float], dict[str, Result]]:
    """Return the shortest time in seconds of each variant over `repeats` runs after a warm-up, and its last result."""
    seconds = dict.fromkeys(variants, float("inf"))
    results: dict[str, Result] = {}
    for turn in range(repeats + 1):
        for name, variant in variants.items():
            start = now(device)
            results[name] = variant()
            elapsed = now(device) - start
            if turn:
                seconds[name] = min(seconds[name], elapsed)
    return seconds, results


def machine(device: str) -> dict[str, Any]:
    """Return the hardware and torch version of the measurement."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {"device": device, "processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def write_json(record: Mapping[str, Any], path: Path | None) -> None:
    """Write the record to `path` and create its folder; do nothing for None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def now(device: str) -> float:
    """Return the time in seconds after all work of the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
