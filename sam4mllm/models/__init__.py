"""The embedded models, shipped as package data: a small SAM and a small MLLM, both at home in `shapes` only.

Their cards (`README.md` beside the weights) tell how they were made and what they reach.
"""

from __future__ import annotations

from pathlib import Path

_PLACES = {"segmenter": Path("segmenter", "sam_shapes.pth"), "mllm": Path("mllm")}


def path(name: str) -> Path:
    """Where an embedded model lies: "segmenter" (a `.pth` as segment_anything saves it) or "mllm" (a model folder).

    Raises:
        KeyError: another name.
    """
    return Path(__file__).parent / _PLACES[name]
