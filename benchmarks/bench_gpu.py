"""Time the stages on a model of real size with random weights: prepare, train (bf16 and nf4) and predict, on one GPU.

    python benchmarks/bench_gpu.py --work runs/bench-gpu --peak-tflops 989 --json runs/bench-gpu/figures.json
    python benchmarks/bench_gpu.py --work runs/bench-gpu --mllm qwen2.5-vl-3b --sam vit_b --batch 4

Everything goes through the recipe's own stages; the images are `shapes` scenes, which the MLLM's processor brings to
the size of a photograph (`--pixels`), and SAM to its own. "phrases/s" of training counts the phrases that were learnt
once the first steps are over. MFU is the dry run's count of operations (without what checkpointing computes twice) over
the time and `--peak-tflops`, the device's highest rate in bfloat16 without sparsity by its data sheet. A random model
never ends an answer, so each has the whole `--max-new-tokens`; SAM is then given an answer as it would have been.
Memory is the most that torch had allocated in the stage. Without a GPU it is not known.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from real_size import MLLMS, SAMS, save_mllm, save_sam
from timing import machine, now, write_json
from transformers import TrainerCallback

from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import queries_of
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluate.report import text_table
from sam4mllm.mllm.engine import Engine, Reply
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.train.dry_run import dry_run
from sam4mllm.train.trainer import train
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries

ANSWER = "[120, 130, 300, 310] +(200, 210)(220, 230) -(130, 290)"
WARM = 3
"""Steps, and batches of queries, that are not timed."""

RECIPE = """
output: {work}/{name}
model: {{base: {mllm}, dtype: {dtype}, quantization: {quantization}, min_pixels: {pixels}, max_pixels: {pixels}}}
segmenter: {{checkpoint: {sam}}}
data:
  train: [{{dataset: refcoco, root: {data}, split: train}}]
method: {{phrases: {phrases}}}
targets: {{store: {work}/targets}}
lora: {{r: 128, lora_alpha: 128, lora_dropout: 0.05}}
training:
  max_steps: {steps}
  per_device_train_batch_size: {batch}
  learning_rate: 1e-4
  bf16: {half}
  gradient_checkpointing: true
  logging_steps: 1
  save_strategy: "no"
  optim: {optimiser}
generation: {{batch_size: {ask_batch}, max_new_tokens: {max_new_tokens}}}
"""


@dataclass
class Stage:
    """One stage's time and what was done in it; `memory` in bytes, None without a GPU."""

    seconds: float = 0.0
    done: int = 0
    memory: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "done": self.done, "a_second": self.done / self.seconds} | {
            "peak_bytes": self.memory,
            **self.more,
        }


@contextmanager
def watched(device: str) -> Iterator[Stage]:
    """The stage's memory; its time is the whole block's unless the block sets it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    stage = Stage()
    start = now(device)
    yield stage
    stage.seconds = stage.seconds or now(device) - start
    if device.startswith("cuda"):
        stage.memory = torch.cuda.max_memory_allocated(device)


class Clock(TrainerCallback):
    """When the first steps were over, and when the last."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.began = self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM:
            self.began = now(self._device)
        self.ended = now(self._device)


class Answering:
    """An engine that generates, then says what a tuned model might have said."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens = 0

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        replies = self._engine.generate(conversations, max_new_tokens)
        self.tokens += sum(len(reply.tokens) if reply.finished else max_new_tokens for reply in replies)
        return [replace(reply, text=ANSWER, finished=True, tokens=()) for reply in replies]


def write_recipe(options: argparse.Namespace, name: str, device: str) -> Path:
    quantised = name == "nf4"
    file = options.work / f"{name}.yaml"
    file.write_text(
        RECIPE.format(
            work=options.work,
            name=name,
            mllm=options.work / options.mllm,
            dtype="float32" if options.mllm == "tiny" else "bfloat16",
            quantization="4bit" if quantised else "null",
            optimiser="adamw_8bit" if quantised else "adamw_torch",
            half=str(device != "cpu").lower(),
            sam=options.work / f"{options.sam}.pth",
            data=options.work / f"shapes-{options.scenes}-2",
            steps=WARM + options.steps,
            **{key: vars(options)[key] for key in ("pixels", "phrases", "batch", "ask_batch", "max_new_tokens")},
        )
    )
    return file


def prepared(recipe: Recipe, device: str) -> Stage:
    shutil.rmtree(recipe.targets.store, ignore_errors=True)
    samples = read_mixture(recipe.data, recipe.seed).samples
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    with watched(device) as stage:
        store = compute_targets(samples, segmenter, TargetSettings.from_recipe(recipe), recipe.targets.store)
    stage.done = len(store.read())
    stage.more = {"unit": "objects", "groups": recipe.targets.groups}
    return stage


def trained(file: Path, device: str, peak_tflops: float | None) -> Stage:
    recipe = load_recipe(file)
    shutil.rmtree(recipe.output, ignore_errors=True)
    expected = dry_run(recipe, tflops=1.0)
    # What checkpointing computes twice is no use to anybody, so the MFU leaves it out.
    once = dry_run(load_recipe(file, ["training.gradient_checkpointing=false"]), tflops=1.0)
    assert expected.memory is not None and once.seconds_per_epoch is not None
    clock = Clock(device)
    with watched(device) as stage:
        train(recipe, device=device, callbacks=[clock])
        stage.seconds = clock.ended - clock.began
    arguments = recipe.training.arguments
    conversations = arguments["per_device_train_batch_size"] * (arguments["max_steps"] - WARM)
    stage.done = round(conversations * expected.phrases / expected.conversations)
    operations = once.seconds_per_epoch * 1e12 / expected.conversations * conversations
    stage.more = {
        "unit": "phrases",
        "tokens_a_second": conversations * expected.tokens["mean"] / stage.seconds,
        "tokens_a_conversation": expected.tokens["mean"],
        "tflops": operations / stage.seconds / 1e12,
        "mfu": None if peak_tflops is None else operations / stage.seconds / 1e12 / peak_tflops,
        "expected_bytes": expected.memory["total"],
    }
    return stage


def predicted(recipe: Recipe, data: Path, queries: int, device: str) -> Stage:
    pipeline = Pipeline.from_pretrained(recipe.output, device=device)
    engine = Answering(pipeline.engine)
    pipeline.engine = engine
    asked = queries_of(read_dataset("refcoco", data, "train"))[: queries + WARM * recipe.generation.batch_size]
    pipeline([(query.image, query.phrase) for query in asked[:-queries]])
    engine.tokens = 0
    with watched(device) as stage:
        predict(pipeline, asked[-queries:], recipe.output / f"answers-{time.time_ns()}")
    stage.done = len(asked[-queries:])
    stage.more = {"unit": "queries", "tokens_a_second": engine.tokens / stage.seconds}
    return stage


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The figures by stage."""
    device = resolve_device(options.device)
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    data = shapes_in(options.work, options.scenes, 2)
    save_mllm(options.mllm, options.work / options.mllm, device)
    save_sam(options.sam, options.work / f"{options.sam}.pth")
    stages: dict[str, Stage] = {}
    for name in options.trainings:
        file = write_recipe(options, name, device)
        recipe = load_recipe(file)
        if not stages:
            stages["prepare"] = prepared(recipe, device)
        stages[f"train {name}"] = trained(file, device, options.peak_tflops)
        stages[f"predict {name}"] = predicted(recipe, data, options.queries, device)
    chosen = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {
        "machine": machine(device),
        "options": chosen,
        "stages": {name: stage.record() for name, stage in stages.items()},
    }


def table(record: dict[str, Any]) -> list[str]:
    """The figures as text."""

    def memory(count: int | None) -> str:
        return "-" if count is None else f"{count / 2**30:.1f} GiB"

    rows = []
    for name, stage in record["stages"].items():
        tokens, mfu = stage.get("tokens_a_second"), stage.get("mfu")
        rows.append(
            [
                name,
                f"{stage['a_second']:.2f} {stage['unit']}/s",
                "-" if tokens is None else f"{tokens:.0f}",
                memory(stage["peak_bytes"]),
                memory(stage.get("expected_bytes")),
                "-" if mfu is None else f"{100 * mfu:.1f} %",
                "",
            ]
        )
    about, options = record["machine"], record["options"]
    return [
        f"{options['mllm']} and SAM {options['sam']}, random weights, on {about['processor']}, torch {about['torch']}",
        "",
        *text_table(["", "", "tokens/s", "peak memory", "the dry run's", "MFU", ""], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, data and runs")
    parser.add_argument("--mllm", choices=tuple(MLLMS), default="qwen3-vl-8b")
    parser.add_argument("--sam", choices=SAMS, default="vit_h")
    parser.add_argument("--trainings", nargs="+", choices=("bf16", "nf4"), default=["bf16", "nf4"])
    parser.add_argument("--scenes", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--pixels", type=int, default=640 * 480, help="of an image for the MLLM (default: 640 x 480)")
    parser.add_argument("--phrases", type=int, default=5, metavar="N", help="of a conversation, at most (default: 5)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="conversations a step (default: 2)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed, after 3 that are not (default: 10)")
    parser.add_argument("--queries", type=int, default=128, metavar="N", help="timed (default: 128)")
    parser.add_argument("--ask-batch", type=int, default=32, metavar="N", help="queries answered at once (default: 32)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--peak-tflops", type=float, help="of the device, in bfloat16, for the MFU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    counts = (options.scenes, options.pixels, options.phrases, options.batch, options.steps, options.queries)
    if min(*counts, options.ask_batch, options.max_new_tokens) < 1:
        parser.error("scenes, pixels, phrases, batches, steps, queries and tokens are 1 or more")
    try:
        record = run(options)
    except Sam4mllmError as error:
        sys.exit(f"bench_gpu: error: {error}")
    print("\n".join(table(record)))
    write_json(record, options.json)


if __name__ == "__main__":
    main()
