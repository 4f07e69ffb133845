"""Resuming a run: the checkpoint that training starts from, and its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam4mllm.runs.file_names import TRAINER_STATE
from sam4mllm.runs.run_folder import RunFolder


def rewind(run: RunFolder, world_size: int, total: int, *, only_unfinished: bool) -> tuple[str | None, int, int]:
    """Return the checkpoint to resume from, its step and its training's last step; drop log entries of later steps.

    It is (None, 0, 1) where there is no checkpoint. With `only_unfinished`, checkpoints of the last step are
    skipped: sharded weights are distributed to their processes only when training begins.

    Raises:
        RecipeError: The checkpoints were written by another number of processes.
    """
    newest: tuple[str | None, int, int] = (None, 0, 1)
    for checkpoint in run.checkpoints.complete(world_size):
        state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
        # A recipe may have been extended since the checkpoint was saved.
        step, last_step = state["global_step"], max(state["max_steps"], total)
        if not (only_unfinished and step >= last_step):
            newest = (checkpoint.name, step, last_step)
            break
    run.rewind(newest[1])
    return newest


def load_adapter(model: Any, checkpoint: Path) -> None:
    """Load the adapter of a checkpoint into a model that has an adapter of the same shape.

    The weights of the losses of locations that are attached to the model are loaded, too.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    from sam4mllm.training.location_losses import LocationLosses

    set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
    for module in model.modules():
        if isinstance(module, LocationLosses):
            module.load(checkpoint)
