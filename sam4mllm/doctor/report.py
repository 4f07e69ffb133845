"""The doctor's report: this machine, the libraries, and the tables of verdicts, as a record, as text and as Markdown.

This module checks nothing; it is given the verdicts.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from sam4mllm.doctor.verdict import NOT_APPLICABLE, Verdict, failed
from sam4mllm.geometry import POSITIVE, Box, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.families import FAMILIES, Family
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.utils.versions import versions

Verdicts = Mapping[str, Mapping[str, Verdict]]
"""By name, then by check."""

NEEDED = (
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
    "bitsandbytes": "model.quantization and eight-bit optimisers: pip install sam4mllm[quantization]",
    "num2words": "SmolVLM's processor: pip install sam4mllm[smolvlm]",
}
"""Packages that only some recipes need, and what for."""


def machine(device: str) -> dict[str, Any]:
    """What the checks ran with: versions (None for a package that is missing) and the device."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return {"versions": versions((*NEEDED, *OPTIONAL)), "device": {"name": name, "torch": device}}


def missing_packages(versions: Mapping[str, str | None]) -> dict[str, str]:
    """The packages that are not installed, and what each is needed for."""
    purposes = {**dict.fromkeys(NEEDED, "everything: pip install sam4mllm"), **OPTIONAL}
    return {package: purpose for package, purpose in purposes.items() if versions.get(package, "") is None}


def any_failed(*tables: Verdicts) -> bool:
    """Whether a check of the tables failed."""
    return any(failed(verdict) for table in tables for row in table.values() for verdict in row.values())


def as_text(record: Mapping[str, Any]) -> str:
    """The whole report for a terminal: one line a family or segmenter, and one for each check that is not true."""
    device = record["device"]
    lines = [f"device  {device['torch']} ({device['name']})"]
    lines += [f"{name}  {version or 'missing'}" for name, version in record["versions"].items()]
    lines += [f"missing: {name}, for {what}" for name, what in missing_packages(record["versions"]).items()]
    for title in ("families", "segmenters"):
        if record.get(title):
            lines += ["", title, *_rows_of_text(record[title])]
    return "\n".join(lines) + "\n"


def as_markdown(record: Mapping[str, Any]) -> str:
    """The tables as Markdown: what is known of each family, then the verdicts, checks across."""
    parts = []
    if record.get("families"):
        parts += [facts_table(list(record["families"])), _verdict_table("family", record["families"])]
    if record.get("segmenters"):
        parts.append(_verdict_table("segmenter", record["segmenters"]))
    return "\n".join(parts)


def _rows_of_text(table: Verdicts) -> list[str]:
    lines = []
    width = max(map(len, table))
    for name, row in table.items():
        shown = [verdict for verdict in row.values() if not _not_applicable(verdict)]
        good = sum(verdict is True for verdict in shown)
        lines.append(f"  {name:{width}}  {good} of {len(shown)} checks")
        for verdict in dict.fromkeys(verdict for verdict in row.values() if verdict is not True):
            checks = [check for check in row if row[check] == verdict]
            lines.append(f"    {', '.join(checks) if len(checks) < len(row) else 'all'}: {verdict}")
    return lines


def _verdict_table(what: str, table: Verdicts) -> str:
    """Names down, checks across; what is not true has a number and is told below."""
    checks = list(dict.fromkeys(check for row in table.values() for check in row))
    notes: list[str] = []
    lines = [_line([what, *(check.replace("_", " ") for check in checks)]), _line(["---"] * (len(checks) + 1))]
    for name, row in table.items():
        cells = [FAMILIES[name].title if name in FAMILIES else name]
        for check in checks:
            verdict = row.get(check, f"{NOT_APPLICABLE}not checked")
            if verdict is True:
                cells.append("yes")
                continue
            text = "no" if verdict is False else str(verdict)
            if text not in notes:
                notes.append(text)
            cells.append(f"{'-' if _not_applicable(verdict) else 'NO'} ({notes.index(text) + 1})")
        lines.append(_line(cells))
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, *(["", *told] if told else [])]) + "\n"


def facts_table(model_types: Sequence[str]) -> str:
    """What is known of each family, one row each, as Markdown."""
    lines = [_line(["family", "model type", "grid", "an object", "images", "limited by", "projector"])]
    lines.append(_line(["---"] * 7))
    for family in (FAMILIES[name] for name in model_types):
        lines.append(
            _line(
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


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _not_applicable(verdict: Verdict) -> bool:
    return isinstance(verdict, str) and verdict.startswith(NOT_APPLICABLE)
