"""A pipeline with scripted answers, workers that kill themselves, and local clusters of Ray."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from sam4mllm.data.predictions import Query
from sam4mllm.errors import ModelError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.segmenters.fake import BoxSegmenter

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

IMAGES, PHRASES = 8, 3


def load(on_question: Callable[[str], None] | None = None, name: str = "test") -> Pipeline:
    """A pipeline that answers each phrase with another box, and first calls `on_question` with the question."""

    def reply(conversation: Conversation) -> str:
        question = conversation.turns[-1].text
        if on_question is not None:
            on_question(question)
        number = int(question.split('"')[1].split()[-1])
        return f"[{number:03d},{number:03d},500,500] +(300,300)(310,310) -(900,900)"

    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    engine = ScriptedEngine(reply)
    return Pipeline(method, engine, BoxSegmenter(), image_batch=2, engine_identity={"name": name})


def kill_once(marker: Path, kill_machine: bool, question: str) -> None:
    """Kill this worker, or the machine of the cluster that it runs on, at the first question about thing 31."""
    if "thing 31" in question:
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return
        # Workers are children of their machine's raylet, without which the machine is lost to the cluster.
        if kill_machine:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def always_killed(question: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_load() -> Pipeline:
    raise ModelError("there is no such model")


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40 + index, 60, 3), index, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_queries(folder: Path) -> list[Query]:
    for index in range(IMAGES):
        (folder / f"{index}.png").write_bytes(png(index))
    return [
        Query(f"q/{index}/{number}", folder / f"{index}.png", f"thing {10 * index + number}")
        for number in range(PHRASES)
        for index in range(IMAGES)
    ]


@contextmanager
def cluster_of(machines: int) -> Iterator[Cluster]:
    """A cluster with a head without CPUs, and machines with one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    # Workers cannot import this module, so that its functions are copied to them.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(machines):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def write_parquet(path: Path, queries: Sequence[Query]) -> None:
    """Write queries with the bytes of their images."""
    table = {
        "id": [query.id for query in queries],
        "phrase": [query.phrase for query in queries],
        "image": [Path(str(query.image)).read_bytes() for query in queries],
    }
    parquet.write_table(pyarrow.table(table), path, row_group_size=5)


def files_of(output: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}
