"""What the build scripts share: checkpoints that are there whole or not at all, and a log of one JSON line a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import torch


def save_whole(state: dict[str, Any], place: Path) -> None:
    """The checkpoint, or the one before it: written aside, then renamed."""
    part = place.with_suffix(".tmp")
    torch.save(state, part)
    part.rename(place)


def report(log: TextIO, line: dict[str, Any]) -> None:
    """One line of the log, at once on the disk for whoever follows the run."""
    log.write(json.dumps(line) + "\n")
    log.flush()
