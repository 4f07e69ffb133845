"""results.json: the scores of an evaluation with all that is needed to repeat it.

It records the code, model, data and settings that gave the scores; unknown values (no checkout, no recipe) are null.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.file_names import RECIPE, RESULTS
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.versions import commit, versions

if TYPE_CHECKING:
    from sam4mllm.pipeline.pipeline import Pipeline


class ScoredSplit(Protocol):
    """The results of a split."""

    def to_json(self, home: Path) -> dict[str, Any]:
        """Return the split's part of results.json, with paths relative to the folder `home`."""
        ...


def results_record(
    pipeline: Pipeline,
    settings: Mapping[str, Any],
    model: str | Path,
    adapter: str | Path | None,
    command: Sequence[str],
    splits: Sequence[ScoredSplit],
    *,
    home: Path,
    seconds: float,
) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        pipeline: The pipeline that answered.
        settings: How the answers were scored, as plain JSON; the keys are keys of the record.
        model: The run folder or base model, as it was named.
        adapter: The adapter, as it was named.
        command: The command line; empty for a call from Python.
        splits: The results of each split.
        home: The folder of results.json, which contains the splits' files.
        seconds: The duration of this evaluation; shorter if some predictions existed already.
    """
    recipe_file = Path(model if adapter is None else adapter) / RECIPE
    recipe = load_recipe(recipe_file) if recipe_file.is_file() else None
    return {
        "command": list(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "commit": commit(),
        "machine": {"platform": platform.platform(), "device": _device_name(pipeline)},
        "model": str(model),
        "adapter": None if adapter is None else str(adapter),
        "recipe": None if recipe is None else recipe.hash(),
        "seed": None if recipe is None else recipe.seed,
        "pipeline": pipeline.identity,
        **settings,
        "splits": [split.to_json(home) for split in splits],
    }


def write_results(record: dict[str, Any], home: Path) -> Path:
    """Write the record atomically as `home`/results.json, and return the file."""
    file = home / RESULTS
    atomic_write_text(file, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return file


def _device_name(pipeline: Pipeline) -> str:
    import torch

    device = pipeline.device
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
