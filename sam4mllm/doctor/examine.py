"""Run the checks that `sam4mllm doctor` is asked for, and record the machine and the results."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from sam4mllm.doctor.families import FAMILY_CHECKS, check_families
from sam4mllm.doctor.report import describe_machine
from sam4mllm.errors import ModelError
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.progress import bar


def examine(only: Sequence[str], device: str) -> dict[str, Any]:
    """Run the chosen checks and return the record of versions, device and results.

    Args:
        only: "families", "segmenters" or model types; none for all.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ModelError: A name in `only` is unknown, or the device does not exist.
    """
    device = resolve_device(device)
    model_types, with_segmenters = choose_checks(only)
    record: dict[str, Any] = {**describe_machine(device), "families": {}, "segmenters": {}}
    if model_types:
        with bar("check", len(model_types) * len(FAMILY_CHECKS), unit="checks") as advance:
            record["families"] = check_families(model_types, device=device, advance=advance)
    if with_segmenters:
        from sam4mllm.doctor.segmenters import check_segmenters

        record["segmenters"] = check_segmenters(device)
    return record


def choose_checks(only: Sequence[str]) -> tuple[list[str], bool]:
    """Return the model types that the names in `only` choose (none: all), and whether segmenters are checked.

    Raises:
        ModelError: A name is unknown.
    """
    known = ["families", "segmenters", *FAMILIES]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"
            raise ModelError(f"--only {name}: no such family; {hint}")
    if not only:
        return list(FAMILIES), True
    return [name for name in FAMILIES if name in only or "families" in only], "segmenters" in only
