"""Whether a recipe trains what another one trained: which settings decide the adapter, and which may differ.

This module knows no folder.
"""

from __future__ import annotations

from typing import Any

from sam4mllm.recipe.schema import Recipe

# They change memory, speed or what is told, and no weight, so a run may go on with others.
_FREE = frozenset(
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


def differences(trained: Recipe, recipe: Recipe) -> list[str]:
    """The settings in which `recipe` would train another adapter than `trained` did, as text; at most three."""
    there, wanted = _flat(trained), _flat(recipe)
    keys = [key for key in {**there, **wanted} if there.get(key, "unset") != wanted.get(key, "unset")]
    texts = [f"{key} is {there.get(key, 'unset')!r} there, {wanted.get(key, 'unset')!r} here" for key in keys[:3]]
    return texts + ([f"and {len(keys) - 3} more"] if len(keys) > 3 else [])


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Every setting that decides what is trained, by its dotted key; `output` does not: a run folder may be moved."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            return {prefix: value}
        return {key: leaf for name, part in items for key, leaf in walk(f"{prefix}.{name}", part).items()}

    settings = recipe.model_dump(mode="json", by_alias=True, exclude={"output"})
    flat = {key: leaf for name, part in settings.items() for key, leaf in walk(name, part).items()}
    return {key: value for key, value in flat.items() if key not in _FREE}
