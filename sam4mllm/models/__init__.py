"""Embedded weights, shipped as package data: a small SAM and a small MLLM, both trained on the generated `shapes` only.

Their model cards (`README.md` beside the weights) report how they were trained and evaluated.
"""

from __future__ import annotations

from pathlib import Path

_PATHS = {
    "segmenter": Path("segmenter", "sam_shapes.pth"),
    "mllm": Path("mllm"),
    "mllm_locations": Path("mllm_locations"),
}


def path(name: str) -> Path:
    """Return the path of an embedded model.

    They are "segmenter" (a `.pth` as segment_anything saves it), "mllm" (a folder) and "mllm_locations" (a folder with
    an adapter for "mllm").

    Raises:
        KeyError: Another name.
    """
    return Path(__file__).parent / _PATHS[name]
