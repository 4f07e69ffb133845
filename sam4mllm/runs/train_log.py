"""TrainLog: train_log.jsonl, one JSON object a line, each with its `step`.

    {"step": 20, "epoch": 0.4, "loss": 1.1, "learning_rate": 0.001, "grad_norm": 0.8}
    {"step": 100, "validation": {"ciou": 0.61, "malformed": 0.01, "n": 48}}

It holds no times of day and no durations, so two runs of one recipe can be compared line by line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.utils.atomic_io import atomic_write_text


class TrainLog:
    """The log in `file`; a last line that was cut short by a kill counts as not written."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[dict[str, Any]]:
        """The records, in the order written; none where there is no file."""
        if not self.file.is_file():
            return []
        text = self.file.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def append(self, record: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Drop the records after `step`."""
        kept = [record for record in self.read() if record["step"] <= step]
        atomic_write_text(self.file, "".join(json.dumps(record) + "\n" for record in kept))

    def validations(self) -> dict[int, dict[str, Any]]:
        """What each validation found, by step."""
        return {record["step"]: record["validation"] for record in self.read() if "validation" in record}
