"""The doctor's report: the machine, the libraries' versions and the tables of results, as text and as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from sam4mllm.doctor.result import NOT_APPLICABLE, CheckResult, is_not_applicable
from sam4mllm.geometry import POSITIVE, Box, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.families import FAMILIES, Family
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.utils.versions import versions

Results = Mapping[str, Mapping[str, CheckResult]]
"""Results by model, then by check."""

REQUIRED = (
    "sam4mllm",
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "segment-anything",
    "timm",
    "numpy",
    "pillow",
    "pycocotools",
    "pydantic",
)
OPTIONAL = {
    "bitsandbytes": "model.quantization and 8-bit optimizers: pip install sam4mllm[quantization]",
    "num2words": "SmolVLM's processor: pip install sam4mllm[smolvlm]",
}
"""Packages that only some recipes need, and their purposes."""


def describe_machine(device: str) -> dict[str, Any]:
    """Return the versions of libraries (None for a missing package) and the device."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return {"versions": versions((*REQUIRED, *OPTIONAL)), "device": {"name": name, "torch": device}}


def missing_packages(versions: Mapping[str, str | None]) -> dict[str, str]:
    """Return the packages that are not installed, with their purposes."""
    purposes = {**dict.fromkeys(REQUIRED, "everything: pip install sam4mllm"), **OPTIONAL}
    return {package: purpose for package, purpose in purposes.items() if versions.get(package, "") is None}


def as_text(record: Mapping[str, Any]) -> str:
    """Return the report for a terminal: a line for each family or segmenter, and for each check that did not pass."""
    device = record["device"]
    lines = [f"device  {device['torch']} ({device['name']})"]
    lines += [f"{name}  {version or 'missing'}" for name, version in record["versions"].items()]
    lines += [f"missing: {name}, for {what}" for name, what in missing_packages(record["versions"]).items()]
    for title in ("families", "segmenters"):
        if record.get(title):
            lines += ["", title, *_text_rows(record[title])]
    return "\n".join(lines) + "\n"


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return the tables as Markdown: the facts about each family, then the results of families and of segmenters."""
    parts = []
    if record.get("families"):
        parts += [family_facts_table(list(record["families"])), _result_table("family", record["families"])]
    if record.get("segmenters"):
        parts.append(_result_table("segmenter", record["segmenters"]))
    return "\n".join(parts)


def _text_rows(table: Results) -> list[str]:
    lines = []
    width = max(map(len, table))
    for name, row in table.items():
        applicable = [result for result in row.values() if not is_not_applicable(result)]
        passed = sum(result is True for result in applicable)
        lines.append(f"  {name:{width}}  {passed} of {len(applicable)} checks")
        for result in dict.fromkeys(result for result in row.values() if result is not True):
            checks = [check for check in row if row[check] == result]
            lines.append(f"    {', '.join(checks) if len(checks) < len(row) else 'all'}: {result}")
    return lines


def _result_table(what: str, table: Results) -> str:
    """Return a table with a row for each model; results that are not true have a number that refers to a note below."""
    checks = list(dict.fromkeys(check for row in table.values() for check in row))
    notes: list[str] = []
    lines = [_row([what, *(check.replace("_", " ") for check in checks)]), _row(["---"] * (len(checks) + 1))]
    for name, row in table.items():
        cells = [FAMILIES[name].title if name in FAMILIES else name]
        for check in checks:
            result = row.get(check, f"{NOT_APPLICABLE}not checked")
            if result is True:
                cells.append("yes")
                continue
            text = "no" if result is False else str(result)
            if text not in notes:
                notes.append(text)
            cells.append(f"{'-' if is_not_applicable(result) else 'NO'} ({notes.index(text) + 1})")
        lines.append(_row(cells))
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, *(["", *numbered] if numbered else [])]) + "\n"


def family_facts_table(model_types: Sequence[str]) -> str:
    """Return the facts about each family as a Markdown table."""
    lines = [_row(["family", "model type", "grid", "an object", "images", "limited by", "projector"])]
    lines.append(_row(["---"] * 7))
    for family in (FAMILIES[name] for name in model_types):
        lines.append(
            _row(
                [
                    family.title,
                    f"`{family.model_type}`",
                    _grid_text(family),
                    f"`{_example(family.coordinates or PLAIN)}`",
                    family.image_size.description,
                    ", ".join(f"`{name}`" for name in family.image_size.limits) or "nothing",
                    ", ".join(f"`{name}`" for name in family.projector),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _grid_text(family: Family) -> str:
    if family.coordinates is None:
        return "`method.grid`"
    frame = family.coordinates.frame
    if isinstance(frame, ResizedGrid):
        return "pixels of the resized image"
    return " x ".join(map(str, frame.bins_wh))


def _example(coordinates: Coordinates) -> str:
    prompt = SamPrompt(Box(77, 163, 358, 374), (Point(128.5, 192.5, POSITIVE),))
    return AnswerGrammar(coordinates).write([prompt], (640, 480))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
