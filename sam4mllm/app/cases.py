"""The evaluations of a run, for browsing: the drawings of best, median and worst cases, and the answers.

The page names evaluations and answers by what is listed here, so no other file can be opened through it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from sam4mllm.app.answers import draw
from sam4mllm.data.images import load_image
from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictionLine, read_predictions
from sam4mllm.data.records import shorten
from sam4mllm.errors import DataError
from sam4mllm.runs.file_names import PREDICTIONS

MOST_LINES = 5000
"""Answers of an evaluation that can be browsed, from the beginning."""

_DRAWING = re.compile(r"(best|median|worst)-(\d+)\.png", re.ASCII)
_KINDS = ("worst", "median", "best")


@dataclass(frozen=True, slots=True)
class Case:
    """A drawing of the page of cases: its file and its caption, such as "worst 1"."""

    file: Path
    caption: str


class Evaluations:
    """The evaluations in a folder: all folders below it that hold a predictions.jsonl.

    Args:
        home: The run folder, or another folder with evaluations.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Return the folders relative to the home, sorted; empty if there is no evaluation."""
        return sorted(file.parent.relative_to(self.home).as_posix() for file in self.home.rglob(PREDICTIONS))

    def cases(self, name: str) -> list[Case]:
        """Return the drawings of an evaluation, the worst first; empty if it has no page of cases.

        Raises:
            DataError: There is no such evaluation.
        """
        found = [
            (_KINDS.index(match[1]), int(match[2]), Case(file, f"{match[1]} {int(match[2]) + 1}"))
            for file in (self._folder(name) / "cases" / "images").glob("*.png")
            if (match := _DRAWING.fullmatch(file.name))
        ]
        return [case for _, _, case in sorted(found, key=lambda each: each[:2])]

    def lines(self, name: str, status: str = "all", text: str = "") -> list[PredictionLine]:
        """Return the answers of an evaluation with a status ("all" for any) whose phrase or id contains a text.

        Raises:
            DataError: There is no such evaluation.
            PredictionsError: Its predictions cannot be read.
        """
        file = self._folder(name) / PREDICTIONS
        lines = _read(file, file.stat().st_mtime_ns)
        wanted = text.strip().lower()
        return [
            line
            for line in lines
            if status in ("all", line.status) and (wanted in (line.phrase or "").lower() or wanted in line.id.lower())
        ]

    def draw(self, name: str, line_id: str) -> tuple[Image.Image, str]:
        """Draw the masks and prompts of an answer over its image, and return the drawing and the answer's text.

        Raises:
            DataError: There is no such evaluation or answer, or its image cannot be read.
            PredictionsError: The predictions cannot be read.
        """
        line = next((line for line in self.lines(name) if line.id == line_id), None)
        if line is None or line.image is None:
            raise DataError(f"{shorten(line_id)}: no such answer with an image in {shorten(name)}")
        masks = [decode(item.segmentation) for item in line.objects]
        drawing = draw(load_image(line.image), masks, [item.prompt for item in line.objects])
        parts = [f"{line.phrase}: {line.status}", *(text for text in (line.answer, line.error) if text)]
        return drawing, "\n".join(parts)

    def _folder(self, name: str) -> Path:
        if name not in self.names():
            raise DataError(f"{shorten(name)}: no such evaluation; the run has {len(self.names())}")
        return self.home / name


@lru_cache(maxsize=4)
def _read(file: Path, modified_ns: int) -> list[PredictionLine]:
    """Read the first answers of a file; again only when it was modified."""
    lines = []
    for line in read_predictions(file):
        lines.append(line)
        if len(lines) == MOST_LINES:
            break
    return lines
