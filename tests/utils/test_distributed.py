"""Jobs of several processes: the same targets, losses, predictions and scores as one process; failures end the job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.evaluation.score import score_predictions
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext, join_processes
from tests.launch import ROOT, accelerate_launch, in_threads, torchrun, write_home
from tests.training.helpers import adapter_of, largest_difference
from tests.utils import distributed_job


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` as a single process leaves it with batches of 2, `two` as two processes with batches of 1."""
    folder = write_home(tmp_path_factory.mktemp("home"))
    distributed_job.run_job(folder, folder / "one", 2, folder / "one/run", SINGLE_PROCESS)
    job = torchrun(str(ROOT / "tests/utils/distributed_job.py"), str(folder), f"{folder}/two", "1", f"{folder}/one/run")
    assert job.returncode == 0, job.stderr
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_two_processes_compute_the_targets_of_one(home: Path) -> None:
    one = files_of(home / "one/targets")
    assert sum(name.endswith(".parquet") for name in one) == 3
    assert files_of(home / "two/targets") == one


@pytest.mark.parametrize("what", ["answers", "masks"])
def test_two_processes_write_the_predictions_of_one(home: Path, what: str) -> None:
    one = files_of(home / "one" / what)
    assert sum(name.startswith("shards/") for name in one) == 3 and len(one["predictions.jsonl"].splitlines()) == 6
    assert files_of(home / "two" / what) == one
    assert files_of(home / "two/box-alone") == files_of(home / "one/box-alone")


def test_two_processes_reach_the_scores_of_one(home: Path) -> None:
    samples = read_dataset("refcoco", home / "data", "val")
    one, two = (
        score_predictions(
            read_predictions(home / way / "masks/predictions.jsonl"), samples, dataset="refcoco", split="val"
        )
        for way in ("one", "two")
    )
    assert one == two and one.ciou


def test_two_processes_of_batch_1_train_as_one_of_batch_2(home: Path) -> None:
    one, two = RunFolder.open(home / "one/run"), RunFolder.open(home / "two/run")
    logs = [[record for record in run.log.read() if "loss" in record] for run in (one, two)]
    assert [record["step"] for record in logs[1]] == [1, 2, 3, 4, 5, 6]
    for first, second in zip(*logs, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-7)
    assert largest_difference(adapter_of(one.path), adapter_of(two.path)) <= 1e-4
    moved = adapter_of(one.path)
    assert max(float(value.abs().max()) for name, value in moved.items() if "lora_B" in name) > 1e-3
    assert one.log.validations() == two.log.validations() and list(one.log.validations()) == [3, 6]
    assert [folder.name for folder in two.checkpoints.complete(2)] == ["checkpoint-6", "checkpoint-4"]


def test_training_does_not_resume_with_another_number_of_processes(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"its checkpoints were written by 2 process\(es\), now there are 1"):
        RunFolder(home / "two/run").checkpoints.complete(1)


def test_one_process_resumes_the_predictions_that_two_began(home: Path) -> None:
    expected = files_of(home / "one/masks")
    (home / "two/masks/shards/00001.jsonl").unlink()
    (home / "two/masks/predictions.jsonl").unlink()
    queries = queries_of(read_dataset("refcoco", home / "data", "val"))
    engine = distributed_job.ScriptedEngine(distributed_job.answer)
    pipeline = distributed_job.Pipeline(distributed_job.Ppg(0, 0, 100, 1), engine, distributed_job.BoxSegmenter())
    distributed_job.predict(pipeline, queries, home / "two/masks", shard_size=1)
    assert len(engine.asked) == 2 and files_of(home / "two/masks") == expected


def test_a_process_that_dies_ends_the_job(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal\n"
        "from sam4mllm.utils.distributed import join_processes\n"
        "with join_processes() as processes:\n"
        "    if processes.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    processes.barrier()\n"
        f"    open({str(tmp_path / 'continued')!r}, 'w')\n"
    )
    job = torchrun(str(script))
    assert job.returncode != 0 and "SIGKILL" in job.stderr
    assert not (tmp_path / "continued").exists()


def test_the_command_line_is_launched_by_torchrun(tmp_path: Path) -> None:
    job = torchrun("-m", "sam4mllm", "segment", "run", "image.png", "a phrase")
    assert job.returncode != 0
    assert (
        "sam4mllm: error: segment runs in one process; only prepare, train, predict, evaluate, calibrate can be started"
        in job.stderr
    )


def test_accelerate_launch_trains_as_torchrun(home: Path) -> None:
    overrides = [f"output={home}/accelerated", f"targets.store={home}/two/targets"]
    recipe = str(home / "recipe.yaml")
    batch = "training.per_device_train_batch_size=1"
    job = accelerate_launch("-m", "sam4mllm", "train", recipe, "--device", "cpu", batch, *overrides)
    assert job.returncode == 0, job.stderr
    assert largest_difference(adapter_of(home / "accelerated"), adapter_of(home / "two/run")) == 0.0


def test_every_item_is_distributed_to_one_process() -> None:
    def work(processes: DistributedContext) -> tuple[list[int], list[int]]:
        first = list(processes.distribute(range(50)))
        processes.barrier()
        return first, list(processes.distribute([7]))

    parts = in_threads(3, work)
    assert sorted(item for first, _ in parts for item in first) == list(range(50))
    assert sorted(item for _, second in parts for item in second) == [7]


def test_the_main_processs_result_is_broadcast_and_the_values_of_all_are_gathered() -> None:
    def work(processes: DistributedContext) -> tuple[Any, Any]:
        return processes.broadcast_result(lambda: {"from": processes.rank}), processes.gather([processes.rank])

    assert in_threads(3, work) == [({"from": 0}, [[0], [1], [2]])] * 3


def test_progress_is_aggregated_over_all_processes() -> None:
    reported: list[int] = []

    def work(processes: DistributedContext) -> None:
        advance = processes.aggregate_progress(reported.append)
        for _ in range(5):
            advance(2)
        processes.barrier()
        advance(0)

    in_threads(3, work)
    assert sum(reported) == 30


@pytest.mark.parametrize("call", [lambda p: p.barrier(), lambda p: p.broadcast_result(int), lambda p: p.gather(1)])
def test_waiting_has_a_limit(call: Callable[[DistributedContext], object]) -> None:
    from torch.distributed import HashStore

    alone = DistributedContext(1, 2, 1, store=HashStore(), time_limit=timedelta(milliseconds=10))
    expected = "process 1 of 2: timed out after 0.01 s waiting for the other ranks; "
    expected += "one crashed or hangs: restart the job"
    with pytest.raises(LaunchError, match=expected):
        call(alone)


def test_a_single_process_waits_for_no_other() -> None:
    reported: list[int] = []
    SINGLE_PROCESS.barrier()
    assert (
        SINGLE_PROCESS.broadcast_result(lambda: 3),
        SINGLE_PROCESS.gather(4),
        list(SINGLE_PROCESS.distribute("ab")),
    ) == (3, [4], ["a", "b"])
    assert (
        SINGLE_PROCESS.aggregate_progress(reported.append) == reported.append
        and SINGLE_PROCESS.device("auto") == "auto"
        and SINGLE_PROCESS.is_main
    )


def test_one_device_for_several_processes_is_refused() -> None:
    from torch.distributed import HashStore

    processes = DistributedContext(1, 2, 1, store=HashStore())
    assert processes.device("cpu") == "cpu"
    with pytest.raises(LaunchError, match=r"--device cuda:1 is one device for 2 processes"):
        processes.device("cuda:1")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, "asked for several processes and started"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is not a number: 'two'"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK is 2, but WORLD_SIZE is 2",
        ),
    ],
)
def test_an_incomplete_launch_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=message), join_processes():
        pass
