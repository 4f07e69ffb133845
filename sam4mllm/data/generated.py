"""The sign that data are generated: a file beside the data sets that says by what, and how to make them again.

The data lie in the formats, and under the names, of real benchmarks, so nothing else would keep figures on them from
being read as figures on those benchmarks. This module knows no format.
"""

from __future__ import annotations

import json
from pathlib import Path

MARKER = "shapes.json"


def mark(root: Path, *, scenes: int, held_out: int, seed: int) -> None:
    """Leaves the sign in the folder `root`."""
    made = {"generator": "sam4mllm shapes", "scenes": scenes, "held_out": held_out, "seed": seed}
    (root / MARKER).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def is_generated(root: Path) -> bool:
    """Whether the data under `root` are generated, so that no published figure stands beside a score on them."""
    return (root / MARKER).is_file()
