"""Fine-tune a multimodal LLM for referring expression segmentation.

Given an image and a referring expression, the model generates the location of each object, as plain text (a bounding
box and a few point prompts) or as an embedding; SAM turns it into a mask. Every stage of the command line is a function
here, in the order of use:

    write_dataset, read_dataset            data sets -> samples
    load_recipe                            recipe file + overrides -> Recipe
    prepare_targets, inspect_targets       recipe -> training targets scored with SAM, and a page that shows them
    dry_run, train                         recipe -> estimates of memory and time; a run folder with the LoRA adapter
    Pipeline, predict                      images and phrases -> masks, in one call or as a job that can be resumed;
                                           Pipeline.ask: a question about an image or a region -> text and masks
    evaluate, score, calibrate             predictions -> cIoU, gIoU ...; calibrated confidence scores
    evaluate_task, score_task              boxes or text -> Acc@0.5, CIDEr-D, POPE ..., without masks
    export_predictions                     predictions -> files of COCO, YOLO, Label Studio, CVAT ...; PNG masks
    merge                                  run folder -> one checkpoint for servers
    push                                   run folder -> a repository of the Hugging Face Hub

The public names are imported on first use (PEP 562), so `import sam4mllm` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam4mllm.data.reading import read_dataset
    from sam4mllm.data.sample import MaskObject, Sample
    from sam4mllm.errors import (
        DataError,
        LaunchError,
        ModelError,
        PredictionsError,
        RecipeError,
        Sam4mllmError,
        ServerError,
    )
    from sam4mllm.evaluation.calibrate import calibrate
    from sam4mllm.evaluation.evaluate import evaluate
    from sam4mllm.evaluation.push import push
    from sam4mllm.evaluation.score import score
    from sam4mllm.evaluation.tasks.evaluate import evaluate_task, score_task
    from sam4mllm.export.export import export_predictions
    from sam4mllm.geometry import Box, Grid, Point, SamPrompt
    from sam4mllm.pipeline.ask import TextResult
    from sam4mllm.pipeline.batch import predict
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.pipeline.result import Result
    from sam4mllm.recipe.loading import load_recipe
    from sam4mllm.recipe.schema import Recipe
    from sam4mllm.runs.merge import merge
    from sam4mllm.synthetic.writer import write_dataset
    from sam4mllm.training.dry_run import dry_run
    from sam4mllm.training.inspect import inspect_targets
    from sam4mllm.training.prepare import prepare_targets
    from sam4mllm.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "Box",
    "DataError",
    "Grid",
    "LaunchError",
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
    "ServerError",
    "TextResult",
    "__version__",
    "calibrate",
    "dry_run",
    "evaluate",
    "evaluate_task",
    "export_predictions",
    "inspect_targets",
    "load_recipe",
    "merge",
    "predict",
    "prepare_targets",
    "push",
    "read_dataset",
    "score",
    "score_task",
    "train",
    "write_dataset",
]

_MODULES = {
    "Box": "geometry",
    "DataError": "errors",
    "Grid": "geometry",
    "LaunchError": "errors",
    "MaskObject": "data.sample",
    "ModelError": "errors",
    "Pipeline": "pipeline.pipeline",
    "Point": "geometry",
    "PredictionsError": "errors",
    "Recipe": "recipe.schema",
    "RecipeError": "errors",
    "Result": "pipeline.result",
    "Sam4mllmError": "errors",
    "SamPrompt": "geometry",
    "Sample": "data.sample",
    "ServerError": "errors",
    "TextResult": "pipeline.ask",
    "calibrate": "evaluation.calibrate",
    "dry_run": "training.dry_run",
    "evaluate": "evaluation.evaluate",
    "evaluate_task": "evaluation.tasks.evaluate",
    "export_predictions": "export.export",
    "inspect_targets": "training.inspect",
    "load_recipe": "recipe.loading",
    "merge": "runs.merge",
    "predict": "pipeline.batch",
    "prepare_targets": "training.prepare",
    "push": "evaluation.push",
    "read_dataset": "data.reading",
    "score": "evaluation.score",
    "score_task": "evaluation.tasks.evaluate",
    "train": "training.trainer",
    "write_dataset": "synthetic.writer",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'sam4mllm' has no attribute {name!r}")
    return getattr(import_module(f"sam4mllm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
