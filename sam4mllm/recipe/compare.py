"""Compare two recipes: the settings in which they would train different adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sam4mllm.recipe.schema import Recipe

# Settings that affect memory, speed or the log but no weight, so that a run may be resumed with other values.
_IRRELEVANT = frozenset(
    {
        "generation.batch_size",
        "targets.batch_size",
        "training.validate.batch_size",
        "training.dataloader_num_workers",
        "training.dataloader_prefetch_factor",
        "training.dataloader_pin_memory",
        "training.dataloader_persistent_workers",
        "training.disable_tqdm",
        "training.logging_steps",
        "training.report_to",
        "training.save_total_limit",
    }
)


# The settings that determine how many conversations a step of one process has, and transformers' defaults.
_STEP_SIZES = {"training.per_device_train_batch_size": 8, "training.gradient_accumulation_steps": 1}


_LENGTHS = frozenset({"training.max_steps", "training.num_train_epochs"})


def differences(trained: Recipe, recipe: Recipe) -> list[str]:
    """Return, as text, up to three settings in which `recipe` would train another adapter than `trained` did.

    If there are more, the last text counts the others. A longer training of the same recipe is no difference.
    """
    before, now = _flat(trained), _flat(recipe)
    if is_longer(trained, recipe):
        before, now = ({key: flat[key] for key in flat if key not in _LENGTHS} for flat in (before, now))
    keys = [key for key in {**before, **now} if before.get(key, "unset") != now.get(key, "unset")]
    texts = [f"{key} is {before.get(key, 'unset')!r} there, {now.get(key, 'unset')!r} here" for key in keys[:3]]
    return texts + ([f"and {len(keys) - 3} more"] if len(keys) > 3 else [])


def is_longer(trained: Recipe, recipe: Recipe) -> bool:
    """Return whether `recipe` trains for more steps than `trained`, or for more epochs if neither limits the steps."""
    (steps, epochs), (more_steps, more_epochs) = (_length(each.training.arguments) for each in (trained, recipe))
    if steps is None and more_steps is None:
        return more_epochs > epochs
    return steps is not None and more_steps is not None and more_steps > steps


def _length(training: Mapping[str, Any]) -> tuple[int | None, float]:
    """Return the limit of steps, None for none, and the number of epochs; defaults are transformers'."""
    steps = training.get("max_steps", -1)
    return steps if steps > 0 else None, training.get("num_train_epochs", 3.0)


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that affect the adapter by dotted key, without `output`, as run folders may be moved."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            return {prefix: value}
        return {key: leaf for name, part in items for key, leaf in walk(f"{prefix}.{name}", part).items()}

    settings = recipe.model_dump(mode="json", by_alias=True, exclude={"output"})
    flat = {key: leaf for name, part in settings.items() for key, leaf in walk(name, part).items()}
    relevant = {key: value for key, value in flat.items() if key not in _IRRELEVANT}
    if recipe.method.phrases == 1:
        del relevant["method.packing"]
    return _with_conversations_per_step(relevant)


def _with_conversations_per_step(flat: dict[str, Any]) -> dict[str, Any]:
    """Replace batch size and accumulation by their product: a step has the same conversations, however divided.

    With `dataloader_drop_last` the number of steps depends on the batch size, so both are kept.
    """
    sizes = [flat.get(key, default) for key, default in _STEP_SIZES.items()]
    if flat.get("training.dataloader_drop_last") or not all(type(size) is int for size in sizes):
        return flat
    kept = {key: value for key, value in flat.items() if key not in _STEP_SIZES}
    return {**kept, " * ".join(_STEP_SIZES): math.prod(sizes)}
