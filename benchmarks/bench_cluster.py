"""Measure the work of the driver of a Ray cluster per shard, apart from models.

    .venv-ray/bin/python benchmarks/bench_cluster.py --json runs/bench/cluster.json

A local cluster of two workers answers queries about tiny images with scripted answers, in shards of the usual size. The
figures are the time to the end of a job of one shard (a worker loads the pipeline twice: for its identity, and in the
pool), and the CPU time of the driver's process per shard in a job of many shards, which bounds the shards per second of
a driver. Wall times depend on other load; the CPU time hardly does. The predictions must equal those of one process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from script import positive, write_json
from timing import machine

from sam4mllm.data.predictions import Query
from sam4mllm.evaluation.report import text_table
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.cluster import predict_on_cluster
from sam4mllm.pipeline.job import SHARD_SIZE
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter

WORKERS = 2


def scripted() -> Pipeline:
    """Return a pipeline without models, which answers every phrase alike."""
    method = method_from_settings(MethodSection(positives=2, negatives=1, coordinates="grid").model_dump())
    engine = ScriptedEngine(lambda conversation: "[250,250,749,749] +(400,400)(500,500) -(900,900)")
    return Pipeline(method, engine, BoxSegmenter(16), engine_identity={"script": "bench_cluster"})


def make_queries(folder: Path, shards: int) -> list[Query]:
    """Write an image per shard, and return the queries about them."""
    queries = []
    for index in range(shards):
        image = folder / f"{index:06d}.bmp"
        Image.fromarray(np.full((16, 16, 3), index % 256, dtype=np.uint8)).save(image)
        queries += [Query(f"{index}/{number}", image, f"the object {number}") for number in range(SHARD_SIZE)]
    return queries


def run(shards: int) -> dict[str, float]:
    """Return the figures."""
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        queries = make_queries(folder, shards)

        def on_cluster(asked: Sequence[Query], output: str) -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            predict_on_cluster(scripted, asked, folder / output, workers=WORKERS, use_gpus=False)
            return time.perf_counter() - wall, time.process_time() - cpu

        start, _ = on_cluster(queries[:SHARD_SIZE], "start")
        wall, cpu = on_cluster(queries, "ray")
        predict(scripted(), queries, folder / "one")
        if (folder / "ray/predictions.jsonl").read_bytes() != (folder / "one/predictions.jsonl").read_bytes():
            raise RuntimeError("the cluster's predictions differ from those of one process")
    figures = {"start_s": start, "wall_ms_per_shard": 1000 * wall / shards, "driver_ms_per_shard": 1000 * cpu / shards}
    ray.shutdown()
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=positive, default=200, metavar="N", help="default: 200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    settings = {"shards": options.shards, **machine("cpu")}
    print(json.dumps(settings), file=sys.stderr)
    figures = run(options.shards)
    print("\n".join(text_table(["figure", "value"], [[name, f"{value:.4g}"] for name, value in figures.items()])))
    write_json({"settings": settings, "figures": figures}, options.json)


if __name__ == "__main__":
    main()
