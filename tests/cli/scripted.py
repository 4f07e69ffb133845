"""A pipeline with scripted answers and a segmenter whose mask is the box, for every subcommand that loads a model."""

from __future__ import annotations

from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter

# The objects of the data set in conftest.py, as a perfect model writes them on a grid of 1000 over 20 x 10 pixels.
ANSWERS = {
    "left": "[100,100,399,499] +(200,200)(300,300) -(900,900)",
    "right": "[500,100,799,499] +(600,200)(700,300) -(900,900)",
    "dragon": "No object found.",
    "riddle": "who knows",
}


def scripted_pipeline(*arguments: object, **settings: object) -> Pipeline:
    """Stand in for `Pipeline.from_pretrained`."""
    return Pipeline(method_from_settings(MethodSection().model_dump()), ScriptedEngine(ANSWERS), BoxSegmenter())
