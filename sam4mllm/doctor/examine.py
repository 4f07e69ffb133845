"""The doctor's whole examination: the machine, the families and the segmenters that are asked for, as one record.

This module knows no single check and prints nothing but its progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam4mllm.doctor.families import check_families, chosen_families
from sam4mllm.doctor.family_checks import FAMILY_CHECKS
from sam4mllm.doctor.report import machine
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.progress import bar


def examine(only: Sequence[str], device: str) -> dict[str, Any]:
    """The record of what the words of `--only` mean (none: all), checked on the device of that name.

    Raises:
        ModelError: a word that means nothing; no such device.
    """
    place = resolve_device(device)
    model_types, with_segmenters = chosen_families(only)
    record: dict[str, Any] = {**machine(place), "families": {}, "segmenters": {}}
    if model_types:
        with bar("check", len(model_types) * len(FAMILY_CHECKS), unit="checks") as advance:
            record["families"] = check_families(model_types, device=place, advance=advance)
    if with_segmenters:
        from sam4mllm.doctor.segmenters import check_segmenters

        record["segmenters"] = check_segmenters(place)
    return record
