"""Test helpers for this package and for user code: tiny random models, a scripted engine, a segmenter without a model.

`save_tiny_mllm` and `save_tiny_segmenter` write checkpoints of transformers' and segment_anything's real classes that
are small enough for a test on a CPU. `ScriptedEngine` replays answers and `BoxSegmenter` returns the box of a prompt as
its mask, so that a pipeline runs without any model:

    >>> import numpy as np
    >>> from sam4mllm import Pipeline
    >>> from sam4mllm.methods.registry import method_from_settings
    >>> from sam4mllm.recipe.schema import MethodSection
    >>> from sam4mllm.testing import BoxSegmenter, ScriptedEngine
    >>> method = method_from_settings(MethodSection().model_dump())
    >>> engine = ScriptedEngine({"ring": "[250,500,749,999] +(500,750)", "dragon": "No object found."})
    >>> pipeline = Pipeline(method, engine, BoxSegmenter())
    >>> image = np.zeros((40, 80, 3), np.uint8)
    >>> result = pipeline(image, "the ring")
    >>> result.status, result.masks.shape, int(result.mask.sum())
    ('ok', torch.Size([1, 40, 80]), 800)
    >>> pipeline(image, "a dragon").status
    'no_object'

`sam4mllm doctor` checks every family and segmenter on these models; docs/testing.md shows how to check your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam4mllm.mllm.scripted_engine import ScriptedEngine
    from sam4mllm.segmenters.fake import BoxSegmenter
    from sam4mllm.testing.tiny_mllms import TINY_MLLMS, save_tiny_mllm
    from sam4mllm.testing.tiny_segmenters import (
        SEGMENT_ANYTHING,
        TINY_SAM,
        save_tiny_sam,
        save_tiny_segmenter,
        tiny_sam,
        tiny_segmenter_model,
    )

__all__ = [
    "SEGMENT_ANYTHING",
    "TINY_MLLMS",
    "TINY_SAM",
    "BoxSegmenter",
    "ScriptedEngine",
    "save_tiny_mllm",
    "save_tiny_sam",
    "save_tiny_segmenter",
    "tiny_sam",
    "tiny_segmenter_model",
]

_MODULES = {
    "SEGMENT_ANYTHING": "testing.tiny_segmenters",
    "TINY_MLLMS": "testing.tiny_mllms",
    "TINY_SAM": "testing.tiny_segmenters",
    "BoxSegmenter": "segmenters.fake",
    "ScriptedEngine": "mllm.scripted_engine",
    "save_tiny_mllm": "testing.tiny_mllms",
    "save_tiny_sam": "testing.tiny_segmenters",
    "save_tiny_segmenter": "testing.tiny_segmenters",
    "tiny_sam": "testing.tiny_segmenters",
    "tiny_segmenter_model": "testing.tiny_segmenters",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that `import sam4mllm.testing` loads no library."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sam4mllm.testing' has no attribute {name!r}")
    return getattr(import_module(f"sam4mllm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
