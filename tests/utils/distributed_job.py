"""A job on tiny models for one process or several: targets, training with validation, predictions.

torchrun --nproc-per-node 2 tests/utils/distributed_job.py HOME OUTPUT BATCH RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.baselines import predict_from_boxes
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets import prepare
from sam4mllm.training.trainer import train
from sam4mllm.utils.distributed import DistributedContext, join_processes


def answer(conversation: Conversation) -> str:
    """Answer each phrase with another box, some with no object, others with malformed text."""
    question = conversation.turns[-1].text
    number = sum(map(ord, question)) % 7
    return {0: "No object found.", 1: "it is hard to say"}.get(number, f"[{number},2,50,60]")


def run_job(home: Path, output: Path, batch: int, run: Path, processes: DistributedContext) -> None:
    """Write `output`/{targets,run,answers,masks,box-alone}; `run` is the run folder whose model answers."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHARD_OBJECTS", 2)
        torch.set_num_threads(1)
        try:
            _run_job(home, output, batch, run, processes)
        finally:
            torch.set_num_threads(threads)


def _run_job(home: Path, output: Path, batch: int, run: Path, processes: DistributedContext) -> None:
    overrides = (f"output={output}/run", f"targets.store={output}/targets")
    recipe = load_recipe(home / "recipe.yaml", [*overrides, f"training.per_device_train_batch_size={batch}"])
    train(recipe, device="cpu", processes=processes)
    queries = queries_of(read_dataset("refcoco", home / "data", "val"))
    pipeline = Pipeline.from_pretrained(run, device="cpu")
    predict(pipeline, queries, output / "answers", shard_size=2, processes=processes)
    scripted = Pipeline(Ppg(0, 0, 100, 1), ScriptedEngine(answer), BoxSegmenter())
    predict(scripted, queries, output / "masks", shard_size=1, processes=processes)
    lines = read_predictions(output / "masks/predictions.jsonl")
    predict_from_boxes(scripted, queries, lines, output / "box-alone", processes=processes)


if __name__ == "__main__":
    with join_processes() as joined_processes:
        run_job(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), joined_processes)
