"""Batch prediction on a Ray cluster: Ray Data gives the shards of a job to a pool of workers, one for each GPU.

The driver opens the job, and writes each shard as its worker returns it, so only the driver needs the output folder,
and a shard whose worker died is not written at all. Shards are those of `batch.predict`: either of the two continues a
folder that the other began. Lines are equal, byte for byte on the same arithmetic (type of device, number of CPU
threads).
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from socket import gethostname
from typing import Any
from warnings import catch_warnings, simplefilter

from sam4mllm.data.predictions import Query
from sam4mllm.errors import LaunchError, ModelError, Sam4mllmError
from sam4mllm.pipeline.batch import AnsweredShard, BatchSummary, Predictor, answer_shards, calibrated_later
from sam4mllm.pipeline.job import SHARD_SIZE, Job
from sam4mllm.runs.calibration import Calibration
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import Advance, ignore

logger = logging.getLogger(__name__)

LOCAL = "local"
"""The address that stands for the cluster of this machine: the running one, or a new one that ends with the job."""

Load = Callable[[], Predictor]
"""A function without arguments that loads the predictor; cloudpickle copies it to the workers."""


def predict_on_cluster(
    load: Load,
    queries: Sequence[Query],
    output: str | Path,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    use_gpus: bool = True,
    shard_size: int = SHARD_SIZE,
    advance: Advance = ignore,
) -> BatchSummary:
    """Answer all queries into the folder `output` as `batch.predict` does, by the workers of a Ray cluster.

    A worker that is killed is started again, on another machine if its own is gone, and its shard is computed again.

    Args:
        load: Loads the pipeline in each worker; what it reads must be at the same path on every machine. Relative paths
            start at the working folder of this process, on the machines that have this folder.
        queries: The queries, in any order; ids are not checked. Their images must be readable by every worker.
        output: The folder of the job, which only this process writes to.
        address: The address of the cluster, such as "head:6379"; "auto" is the running one, for "local" see
            `LOCAL`. This process runs on one of its machines. Ignored within a program that is connected to a cluster.
        workers: The number of workers; None for one per GPU, or one per machine where no GPU is used.
        use_gpus: Whether each worker gets a GPU, where the cluster has any.
        shard_size: The minimum number of queries of a shard.
        advance: Called with the number of finished queries, first with those of earlier runs.

    Raises:
        DataError: `output` contains the predictions of other queries or of another model.
        LaunchError: Another job writes to `output`; no cluster at the address; a worker cannot load the pipeline, or
            its pipeline raised an error (see `batch.predict`); or the workers died before any of them finished a shard.
            Completed shards are kept.
        ModelError: Ray is not installed.
    """
    output = Path(output)
    with folder_lock(output, "predicting", subfolders=("shards", "images")), _connected(address):
        # 1. A worker loads the pipeline for its identity: this machine may lack GPU, memory and weights.
        gpus = _gpus() if use_gpus else 0
        workers = workers or gpus or _machines()
        if use_gpus and not gpus:
            logger.warning("the Ray cluster has no GPU, so %d worker(s) compute on CPUs", workers)
        load_uncalibrated = partial(_load_in, Path.cwd(), load)
        identity, calibration = _described(load_uncalibrated, bool(gpus))
        job = Job.open(identity, queries, output, shard_size)
        pending = job.pending()
        advance(len(queries) - sum(len(job.shards[index]) for index in pending))

        # 2. Shards that were lost with their worker are still pending after a pass, and are in the next one.
        while pending:
            pending = _one_pass(_answered(load_uncalibrated, job, pending, workers, bool(gpus)), job, pending, advance)
        return BatchSummary(job.predictions, **job.merge(calibration))


def _one_pass(answered: Iterator[AnsweredShard], job: Job, pending: Sequence[int], advance: Advance) -> list[int]:
    """Write the pending shards that are answered, and return those that are not.

    Raises:
        LaunchError: None is answered.
    """
    done: set[int] = set()
    for shard in answered:
        job.write_shard(shard.index, shard.lines, shard.images)
        done.add(shard.index)
        advance(len(shard.lines))
    if not done:
        raise LaunchError(
            f"the workers of Ray died before any of them finished one of {len(pending)} shards; Ray's logs state the "
            "reason (out of memory, for example)"
        )
    if lost := [index for index in pending if index not in done]:
        logger.warning("%d shard(s) were lost with their workers, and are answered again", len(lost))
    return lost


_LoadUncalibrated = Callable[[], tuple[Predictor, Calibration | None]]
"""A function that loads the predictor of the shards, and the calibration to apply when they are merged."""


def _load_in(folder: Path, load: Load) -> tuple[Predictor, Calibration | None]:
    """Load the predictor where relative paths mean what they mean in `folder`, if this machine has this folder."""
    if folder.is_dir():
        os.chdir(folder)
    return calibrated_later(load())


class _Worker:
    """An actor of Ray Data that answers a shard per row; it loads its predictor for the first one."""

    def __init__(self, load: _LoadUncalibrated) -> None:
        self._load = cache(load)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Return the outcome of answering the shard."""
        return {"outcome": _outcome(lambda: self._answer(row["index"], pickle.loads(row["queries"])))}

    def _answer(self, index: int, queries: Sequence[Query]) -> AnsweredShard:
        predictor, _ = self._load()
        (answered,) = answer_shards(predictor, [(index, queries)])
        return answered


def _outcome(compute: Callable[[], object]) -> bytes:
    """Return what `compute` returns, or its error with the name of this machine, pickled.

    An error is returned, because Ray Data tolerates exceptions here, as it must where a worker dies.
    """
    try:
        return pickle.dumps(compute())
    except Exception as error:
        text = str(error) if isinstance(error, Sam4mllmError) else f"{type(error).__name__}: {error}"
        return pickle.dumps(LaunchError(f"machine {gethostname()} of the Ray cluster: {text}"))


def _result(outcome: bytes) -> Any:
    """Return the result of an outcome, or raise its error."""
    result = pickle.loads(outcome)
    if isinstance(result, Exception):
        raise result
    return result


def _answered(
    load: _LoadUncalibrated, job: Job, pending: Sequence[int], workers: int, on_gpu: bool
) -> Iterator[AnsweredShard]:
    """Yield the pending shards as workers answer them; those whose worker died are left out.

    Raises:
        LaunchError: The error of a worker's pipeline.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = [{"index": index, "queries": pickle.dumps(list(job.shards[index]))} for index in pending]
    with catch_warnings():
        # There is no other way to set `max_task_retries`; pyproject.toml excludes the versions without this one.
        simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(load,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows)), max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
            # A task that is lost with its worker fails at once. Retried, it would wait for its own worker to start
            # again, which needs a free GPU, while the other workers are idle.
            max_task_retries=0,
        )
    shards.context.max_errored_blocks = -1
    shards.context.enable_progress_bars = False
    try:
        for row in shards.iter_rows():
            yield _result(row["outcome"])
    # An answered shard is lost with its machine, if the machine is lost before this process has the shard.
    except ray.exceptions.RayError as error:
        logger.warning("%s", _first_line(error))


def _described(load: _LoadUncalibrated, on_gpu: bool) -> tuple[dict[str, Any], Calibration | None]:
    """Return the identity of the predictor that a worker loads, and the calibration to apply when shards are merged.

    Raises:
        LaunchError: The predictor cannot be loaded.
    """
    import ray

    def describe() -> tuple[dict[str, Any], Calibration | None]:
        predictor, calibration = load()
        return predictor.identity, calibration

    try:
        outcome = ray.get(ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0)(_outcome).remote(describe))
    except ray.exceptions.RayError as error:
        raise LaunchError(f"a worker of Ray cannot load the pipeline: {_first_line(error)}") from error
    return _result(outcome)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster for the block, unless this program is connected to one.

    Raises:
        ModelError: Ray is not installed.
        LaunchError: There is no cluster at the address, or the address is that of Ray's client.
    """
    named = os.environ.get("RAY_ADDRESS", LOCAL) if address == LOCAL else address
    if named.startswith("ray://"):
        raise LaunchError(
            f"--ray {named}: Ray Data does not run through Ray's client; give the command on a machine of the "
            "cluster, with --ray auto"
        )
    # Ray reports the use of a cluster that it starts to its makers, unless this is set.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ModelError("--ray needs Ray: pip install 'sam4mllm[ray]'") from error
    if ray.is_initialized():
        yield
        return
    try:
        # Without an address, Ray takes that of RAY_ADDRESS or of the running cluster, or starts one.
        ray.init(None if address == LOCAL else address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LaunchError(
            f"--ray {address}: no Ray cluster answers there: {_first_line(error)}; if it has a token, set "
            "RAY_AUTH_MODE=token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    """Return the first line of an error of Ray, whose further lines are advice, or the traceback in a worker."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _gpus() -> int:
    """Return the number of GPUs of the cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _machines() -> int:
    """Return the number of running machines of the cluster that have CPUs for workers, at least 1."""
    import ray

    return max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()))
