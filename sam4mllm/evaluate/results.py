"""results.json: the scores of an evaluation with all that is needed to repeat it.

It says which code, model, data and settings gave the figures, and nothing of it has to be remembered: what the program
cannot know (no checkout, no recipe) is null. This module measures nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.evaluate.evaluate import EvalSettings, EvaluatedSplit
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.versions import commit, versions

if TYPE_CHECKING:
    from sam4mllm.pipeline.pipeline import Pipeline

RESULTS = "results.json"


def results_record(
    splits: Sequence[EvaluatedSplit],
    pipeline: Pipeline,
    judging: EvalSettings,
    home: Path,
    *,
    model: str | Path,
    adapter: str | Path | None = None,
    command: Sequence[str] = (),
    seconds: float,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        splits: what came out, split by split.
        pipeline: what answered.
        judging: how it was judged.
        home: the folder that results.json goes to; the splits' files lie in it.
        model: the run folder or base model, as it was named.
        adapter: the adapter, as it was named.
        command: the command line; empty for a call from Python.
        seconds: how long this evaluation took, which may have found part of the work done.
    """
    recipe = _recipe_file(model if adapter is None else adapter)
    settings = None if recipe is None else load_recipe(recipe)
    return {
        "command": list(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "commit": commit(),
        "machine": {"platform": platform.platform(), "device": _device(pipeline)},
        "model": str(model),
        "adapter": None if adapter is None else str(adapter),
        "recipe": None if settings is None else settings.hash(),
        "seed": None if settings is None else settings.seed,
        "pipeline": pipeline.identity,
        "min_pixels": judging.min_pixels,
        "splits": [split.to_json(home) for split in splits],
    }


def write_results(record: dict[str, Any], home: Path) -> Path:
    """The record as `home`/results.json, whole or not at all; returns the file."""
    place = home / RESULTS
    atomic_write_text(place, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return place


def _recipe_file(run: str | Path) -> Path | None:
    """The resolved recipe of a run folder; None for a model or adapter that is none."""
    file = Path(run) / "recipe.yaml"
    return file if file.is_file() else None


def _device(pipeline: Pipeline) -> str:
    """The device as torch names it, with the GPU's name."""
    import torch

    device = pipeline.device
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
