"""Referring segmentation by talking: a multimodal LLM answers with a box and points, SAM turns them into masks.

The public names are found on first use (PEP 562), so `import sam4mllm` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam4mllm.data.sample import MaskObject, Sample
    from sam4mllm.errors import DataError, ModelError, PredictionsError, RecipeError, Sam4mllmError
    from sam4mllm.geometry import Box, Grid, Point, SamPrompt
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.pipeline.result import Result
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.recipe.schema import Recipe

__version__ = "0.1.0"

__all__ = [
    "Box",
    "DataError",
    "Grid",
    "MaskObject",
    "ModelError",
    "Pipeline",
    "Point",
    "PredictionsError",
    "Recipe",
    "RecipeError",
    "Result",
    "Sam4mllmError",
    "SamPrompt",
    "Sample",
    "__version__",
    "load_recipe",
]

_HOMES = {
    "Box": "geometry",
    "DataError": "errors",
    "Grid": "geometry",
    "MaskObject": "data.sample",
    "ModelError": "errors",
    "Pipeline": "pipeline.pipeline",
    "Point": "geometry",
    "PredictionsError": "errors",
    "Recipe": "recipe.schema",
    "RecipeError": "errors",
    "Result": "pipeline.pipeline",
    "Sam4mllmError": "errors",
    "SamPrompt": "geometry",
    "Sample": "data.sample",
    "load_recipe": "recipe.loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sam4mllm' has no attribute {name!r}")
    return getattr(import_module(f"sam4mllm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
