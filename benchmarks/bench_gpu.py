"""Time the stages on a model of real size with random weights: prepare, train (bf16 and nf4) and predict, on one GPU.

    python benchmarks/bench_gpu.py --work runs/bench-gpu --peak-tflops 989 --json runs/bench-gpu/figures.json
    python benchmarks/bench_gpu.py --work runs/bench-gpu --mllm qwen2.5-vl-3b --sam vit_b --batch 4
    python benchmarks/bench_gpu.py --work runs/bench-gpu --trainings bf16 --set training.gradient_checkpointing=false

The stages are those of the package; the images are `shapes` scenes, which the MLLM's processor resizes to the size of a
photograph (`--pixels`), and SAM to its input size. "phrases/s" of training counts the phrases after the first steps.
MFU is the dry run's count of operations (without the recomputation of checkpointing) divided by the time and
`--peak-tflops`, the device's peak rate in bfloat16 without sparsity according to its data sheet. A random model ends
its answers at chance or after `--max-new-tokens` tokens; SAM then gets the answer of a trained model. Memory is
the peak that torch had allocated in the stage. "GPU busy" is the mean of nvidia-smi's samples of utilization.gpu, the
share of time in which a kernel ran. Neither is measured without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from questions import FixedAnswers
from real_size import MLLMS, SAMS, save_mllm, save_sam
from script import write_json
from stages import WARM_UP, Clock, Stage, measured
from timing import machine

from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import queries_of
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluation.report import text_table
from sam4mllm.mllm.constrained_engine import constrained_engine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.dry_run import dry_run
from sam4mllm.training.trainer import train
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries

STAGES = ("prepare", "train", "predict")

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
  optim: {optimizer}
generation: {{batch_size: {ask_batch}, max_new_tokens: {max_new_tokens}}}
"""


def write_recipe(options: argparse.Namespace, name: str, device: str) -> Path:
    """Write the recipe of the training `name` ("bf16" or "nf4") and return its path."""
    quantized = name == "nf4"
    file = options.work / f"{name}.yaml"
    file.write_text(
        RECIPE.format(
            work=options.work,
            name=name,
            mllm=options.work / options.mllm,
            dtype="float32" if options.mllm == "tiny" else "bfloat16",
            quantization="4bit" if quantized else "null",
            optimizer="adamw_8bit" if quantized else "adamw_torch",
            half=str(device != "cpu").lower(),
            sam=options.work / f"{options.sam}.pth",
            data=options.work / f"shapes-{options.scenes}-2",
            steps=WARM_UP + options.steps,
            **{key: vars(options)[key] for key in ("pixels", "phrases", "batch", "ask_batch", "max_new_tokens")},
        )
    )
    return file


def time_prepare(recipe: Recipe, device: str) -> Stage:
    """Time the scoring of the point groups of all training objects."""
    shutil.rmtree(recipe.targets.store, ignore_errors=True)
    samples = read_mixture(recipe.data, recipe.seed).samples
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    with measured(device) as stage:
        store = compute_targets(samples, segmenter, TargetSettings.from_recipe(recipe), recipe.targets.store)
    stage.done = len(store.read())
    stage.extra = {"unit": "objects", "groups": recipe.targets.groups}
    return stage


def time_train(file: Path, settings: Sequence[str], device: str, peak_tflops: float | None) -> Stage:
    """Time the training steps after the warm-up, of the recipe in `file` with other `settings`."""
    recipe = load_recipe(file, settings)
    shutil.rmtree(recipe.output, ignore_errors=True)
    expected = dry_run(recipe, tflops=1.0)
    # The MFU does not count the operations that checkpointing repeats.
    without_recomputation = dry_run(load_recipe(file, [*settings, "training.gradient_checkpointing=false"]), tflops=1.0)
    assert expected.memory is not None and without_recomputation.seconds_per_epoch is not None
    arguments = recipe.training.arguments
    clock = Clock(device, arguments["max_steps"])
    with measured(device, timed=False) as stage:
        train(recipe, device=device, callbacks=[clock])
    stage.seconds, stage.busy = clock.end - clock.start, clock.busy
    conversations = arguments["per_device_train_batch_size"] * (arguments["max_steps"] - WARM_UP)
    stage.done = round(conversations * expected.phrases / expected.conversations)
    operations = without_recomputation.seconds_per_epoch * 1e12 / expected.conversations * conversations
    stage.extra = {
        "unit": "phrases",
        "tokens_a_second": conversations * expected.tokens["mean"] / stage.seconds,
        "tokens_a_conversation": expected.tokens["mean"],
        "tflops": operations / stage.seconds / 1e12,
        "mfu": None if peak_tflops is None else operations / stage.seconds / 1e12 / peak_tflops,
        "expected_bytes": expected.memory["total"],
    }
    return stage


def time_predict(recipe: Recipe, data: Path, queries: int, device: str) -> Stage:
    """Time the predictions of `queries` queries after a warm-up on other ones."""
    loaded = Pipeline.from_pretrained(recipe.output, device=device)
    form = loaded.method.answer_form
    engine = FixedAnswers(constrained_engine(loaded.engine, form) if loaded.constrained else loaded.engine)
    pipeline = Pipeline(loaded.method, engine, loaded.segmenter, max_new_tokens=loaded.max_new_tokens)
    all_queries = queries_of(read_dataset("refcoco", data, "train"))[: queries + WARM_UP * recipe.generation.batch_size]
    pipeline([(str(query.image), query.phrase) for query in all_queries[:-queries]])
    engine.tokens = 0
    with measured(device) as stage:
        predict(pipeline, all_queries[-queries:], recipe.output / f"answers-{time.time_ns()}")
    stage.done = len(all_queries[-queries:])
    stage.extra = {"unit": "queries", "tokens_a_second": engine.tokens / stage.seconds}
    return stage


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each stage, which are also printed as soon as it ends."""
    device = resolve_device(options.device)
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    data = shapes_in(options.work, options.scenes, 2)
    save_mllm(options.mllm, options.work / options.mllm, device)
    save_sam(options.sam, options.work / f"{options.sam}.pth")
    stages: dict[str, Stage] = {}

    def add(name: str, stage: Stage) -> None:
        stages[name] = stage
        print(f"{name}: {json.dumps(stage.record())}", file=sys.stderr, flush=True)

    for name in options.trainings:
        file = write_recipe(options, name, device)
        recipe = load_recipe(file, options.set)
        if "prepare" in options.stages and not stages:
            add("prepare", time_prepare(recipe, device))
        if "train" in options.stages:
            add(f"train {name}", time_train(file, options.set, device, options.peak_tflops))
        if "predict" in options.stages:
            add(f"predict {name}", time_predict(recipe, data, options.queries, device))
    options_as_json = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    records = {name: stage.record() for name, stage in stages.items()}
    return {"machine": machine(device), "options": options_as_json, "stages": records}


def table(record: dict[str, Any]) -> list[str]:
    """Return the figures as text."""

    def memory(count: int | None) -> str:
        return "-" if count is None else f"{count / 2**30:.1f} GiB"

    rows = []
    for name, stage in record["stages"].items():
        tokens, mfu, busy = stage.get("tokens_a_second"), stage.get("mfu"), stage["gpu_busy"]
        rows.append(
            [
                name,
                f"{stage['a_second']:.2f} {stage['unit']}/s",
                "-" if tokens is None else f"{tokens:.0f}",
                memory(stage["peak_bytes"]),
                memory(stage.get("expected_bytes")),
                "-" if mfu is None else f"{100 * mfu:.1f} %",
                "-" if busy is None else f"{100 * busy:.0f} %",
                "",
            ]
        )
    about, options = record["machine"], record["options"]
    return [
        f"{options['mllm']} and SAM {options['sam']}, random weights, on {about['processor']}, torch {about['torch']}",
        "",
        *text_table(["", "", "tokens/s", "peak memory", "estimated by the dry run", "MFU", "GPU busy", ""], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, data and runs")
    parser.add_argument("--mllm", choices=tuple(MLLMS), default="qwen3-vl-8b")
    parser.add_argument("--sam", choices=SAMS, default="vit_h")
    parser.add_argument("--trainings", nargs="+", choices=("bf16", "nf4"), default=["bf16", "nf4"])
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="predict needs an earlier training (default: all)"
    )
    parser.add_argument("--scenes", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--pixels", type=int, default=640 * 480, help="area of an image (default: 640 x 480)")
    parser.add_argument("--phrases", type=int, default=5, metavar="N", help="maximum per conversation (default: 5)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="conversations per step (default: 2)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed, after 3 to warm up (default: 10)")
    parser.add_argument("--queries", type=int, default=128, metavar="N", help="timed queries (default: 128)")
    parser.add_argument("--ask-batch", type=int, default=32, metavar="N", help="queries per batch (default: 32)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the recipe, as of `train`"
    )
    parser.add_argument("--peak-tflops", type=float, help="the device's peak rate in bfloat16, for the MFU")
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
