"""Measure how the memory of prepare, predict and score grows with the number of queries.

    python benchmarks/bench_memory.py --json runs/bench/memory.json

For each number of queries, a data set of tiny images with five phrases each is written, and each stage runs on it in a
process of its own: `prepare` (targets of all objects, in place of a SAM the segmenter whose masks are boxes), `predict`
(scripted answers), `predict again` (the same job, which is complete) and `score`. Reading the data set is a part of
each stage. The figures are the highest resident memory of the process (VmHWM of Linux), and the bytes that a query adds
to it: the difference to the row before, divided by the difference in queries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from script import positive, write_json
from timing import machine

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.query_files import read_queries
from sam4mllm.data.reading import read_dataset
from sam4mllm.evaluation.report import text_table
from sam4mllm.evaluation.score import score
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings

PHRASES = 5
SIDE = 16
_ANSWER = "[250,250,749,749] +(400,400)(500,500) -(900,900)"
_MIB = 2**20


def write_data(folder: Path, queries: int) -> None:
    """Write images, the data set data.jsonl with one object per phrase, and its queries.jsonl."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(0, queries, PHRASES):
        name = f"images/{number // PHRASES:06d}.bmp"
        color = (number % 256, number // 256 % 256, number // 65536)
        Image.new("RGB", (SIDE, SIDE), color).save(folder / name)
        for phrase in range(number, min(number + PHRASES, queries)):
            left = phrase % PHRASES
            mask = [[left, 4, left + 8, 4, left + 8, 12, left, 12]]
            lines.append(json.dumps({"image": name, "phrase": f"the object number {phrase}", "masks": [mask]}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = queries_of(read_dataset("jsonl", path=folder / "data.jsonl"))
    text = "".join(json.dumps(query.to_json()) + "\n" for query in asked)
    (folder / "queries.jsonl").write_text(text, encoding="utf-8")


def prepare_stage(folder: Path) -> int:
    """Compute the targets of all objects, and return their number."""
    settings = TargetSettings(
        positives=2,
        negatives=1,
        groups=2,
        keep=1,
        judge="exact",
        choose="top",
        jitter=0.1,
        jitter_boxes=3,
        widen=0.1,
        min_iou=0.0,
        seed=0,
        batch_size=256,
    )
    samples = read_dataset("jsonl", path=folder / "data.jsonl")
    store = compute_targets(samples, BoxSegmenter(SIDE), settings, folder / "targets")
    return len(samples) if store.shards() else 0


def predict_stage(folder: Path) -> int:
    """Answer all queries, and return the number of answers with an object."""
    method = method_from_settings(MethodSection(positives=2, negatives=1, coordinates="grid").model_dump())
    # A function of the conversation, and no record of the questions, which would grow.
    engine = ScriptedEngine(lambda conversation: _ANSWER)
    engine.asked = _Nothing()
    pipeline = Pipeline(method, engine, BoxSegmenter(SIDE), engine_identity={"script": "bench_memory"})
    return predict(pipeline, read_queries(folder / "queries.jsonl"), folder / "out").ok


class _Nothing(list[Any]):
    """A list that keeps nothing."""

    def append(self, item: Any) -> None:
        """Drop the item."""


def score_stage(folder: Path) -> int:
    """Score the predictions, and return the number of sentences with one."""
    scores = score(folder / "out/predictions.jsonl", dataset="jsonl", path=folder / "data.jsonl", protocol="grefcoco")
    return scores.n - scores.missing


STAGES = {"prepare": prepare_stage, "predict": predict_stage, "predict again": predict_stage, "score": score_stage}


def peak_bytes() -> int:
    """Return the highest resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(stage: str, folder: Path) -> dict[str, Any]:
    """Run a stage in this process, and return its figures."""
    before, start = peak_bytes(), time.perf_counter()
    done = STAGES[stage](folder)
    return {"done": done, "seconds": time.perf_counter() - start, "start_bytes": before, "peak_bytes": peak_bytes()}


def run(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures of each stage for each number of queries, in ascending order."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "data")
            write_data(folder, count)
            for stage in STAGES:
                command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
                result = subprocess.run(command, check=True, capture_output=True, text=True)
                row = {"stage": stage, "queries": count, **json.loads(result.stdout.splitlines()[-1])}
                if row["done"] != count:
                    raise RuntimeError(f"{stage}: {row['done']} of {count} queries are done")
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
            if sum(1 for _ in read_predictions(folder / "out/predictions.jsonl")) != count:
                raise RuntimeError(f"expected {count} predictions")
    for stage in STAGES:
        smaller = None
        for row in (row for row in rows if row["stage"] == stage):
            row["bytes_a_query"] = None
            if smaller is not None:
                growth = row["peak_bytes"] - smaller["peak_bytes"]
                row["bytes_a_query"] = growth / (row["queries"] - smaller["queries"])
            smaller = row
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures as text."""
    cells = [
        [
            row["stage"],
            f"{row['queries']:,}",
            f"{row['seconds']:.1f} s",
            f"{row['peak_bytes'] / _MIB:.0f} MiB",
            "" if row["bytes_a_query"] is None else f"{row['bytes_a_query']:,.0f}",
            "",
        ]
        for row in sorted(rows, key=lambda row: list(STAGES).index(row["stage"]))
    ]
    return text_table(["stage", "queries", "time", "peak memory", "bytes a query", ""], cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="1,000 and 4,000 queries")
    parser.add_argument(
        "--queries",
        type=positive,
        nargs="+",
        metavar="N",
        help="numbers of queries in ascending order (default: 1,000, 10,000, 30,000 and 100,000)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage is not None:
        print(json.dumps(measure(options.stage, options.folder)))
        return
    counts = options.queries or ([1000, 4000] if options.small else [1000, 10_000, 30_000, 100_000])
    if counts != sorted(set(counts)):
        parser.error("give each number of queries once, in ascending order")
    rows = run(counts)
    print("\n".join(table(rows)))
    write_json({"benchmark": "bench_memory", "machine": machine("cpu"), "rows": rows}, options.json)


if __name__ == "__main__":
    main()
