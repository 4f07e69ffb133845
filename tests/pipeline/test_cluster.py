"""What a worker and the driver of a Ray cluster do apart from Ray; `tests/ray_cluster` runs them on a cluster."""

from __future__ import annotations

import pickle
from pathlib import Path
from socket import gethostname

import pytest

from sam4mllm.errors import LaunchError
from sam4mllm.pipeline.batch import AnsweredShard
from sam4mllm.pipeline.cluster import _load_in, _one_pass, _result, _Worker
from sam4mllm.pipeline.job import Job
from tests.ray_cluster.scripted import fail_to_load, load, make_queries


def test_a_worker_loads_once_and_returns_answered_shards(tmp_path: Path) -> None:
    queries, loaded = make_queries(tmp_path)[:2], list[int]()

    def counted():  # type: ignore[no-untyped-def]
        loaded.append(1)
        return load(), None

    worker = _Worker(counted)
    shards = [_result(worker({"index": index, "queries": pickle.dumps(queries)})["outcome"]) for index in (4, 7)]
    assert [(shard.index, len(shard.lines), len(shard.images)) for shard in shards] == [(4, 2, 2), (7, 2, 2)]
    assert shards[0].lines == shards[1].lines and loaded == [1]


def test_an_error_of_a_worker_names_its_machine(tmp_path: Path) -> None:
    row = {"index": 0, "queries": pickle.dumps(make_queries(tmp_path)[:1])}
    with pytest.raises(LaunchError, match=f"^machine {gethostname()} of the Ray cluster: there is no such model$"):
        _result(_Worker(lambda: (fail_to_load(), None))(row)["outcome"])
    with pytest.raises(LaunchError, match="of the Ray cluster: UnpicklingError: "):
        _result(_Worker(lambda: (load(), None))({**row, "queries": b"no pickle"})["outcome"])


def test_shards_that_no_worker_returned_are_left_for_the_next_pass(tmp_path: Path) -> None:
    job = Job.open({}, make_queries(tmp_path)[:6], tmp_path / "out", shard_size=1)
    counted: list[int] = []
    answered = iter([AnsweredShard(2, ["a\n", "b\n"], {}), AnsweredShard(0, ["c\n"], {})])
    assert _one_pass(answered, job, [0, 1, 2, 3], counted.append) == [1, 3]
    assert counted == [2, 1] and job.shard_file(2).read_text() == "a\nb\n"
    with pytest.raises(LaunchError, match="died before any of them finished one of 2 shards"):
        _one_pass(iter([]), job, [1, 3], counted.append)


def test_relative_paths_start_at_the_folder_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    _load_in(tmp_path / "only on the driver", load)
    assert Path.cwd() == Path(__file__).parent
    _load_in(tmp_path, load)
    assert Path.cwd() == tmp_path
