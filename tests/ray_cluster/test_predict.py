"""`predict_on_cluster` on a local Ray cluster of two workers (`make test-ray`): its files are those of `predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.image_sources import ImageUrl
from sam4mllm.data.predictions import Query
from sam4mllm.data.query_files import read_queries
from sam4mllm.errors import DataError, LaunchError
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.cluster import predict_on_cluster
from tests.ray_cluster.scripted import (
    always_killed,
    cluster_of,
    fail_to_load,
    files_of,
    kill_once,
    load,
    make_queries,
    write_parquet,
)

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of(2) as cluster:
        yield cluster


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_every_line_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are at absolute and relative paths, at a URL, in Parquet, and one is nowhere."""
    monkeypatch.chdir(tmp_path)
    files = make_queries(tmp_path)
    write_parquet(tmp_path / "q.parquet", files[:4])
    queries = [
        *files,
        *(Query(f"bytes/{query.id}", query.image, query.phrase) for query in read_queries(Path("q.parquet"))),
        Query("url", ImageUrl(f"file://{tmp_path}/0.png"), "thing 5"),
        Query("relative", Path("2.png"), "thing 6"),
        Query("gone", Path("gone.png"), "thing 7"),
    ]
    expected = predict(load(), queries, tmp_path / "one", shard_size=3)
    killed, counted = partial(load, partial(kill_once, tmp_path / "killed", False)), list[int]()
    summary = predict_on_cluster(killed, queries, tmp_path / "ray", shard_size=3, advance=counted.append)
    assert (tmp_path / "killed").exists() and sum(counted) == len(queries)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
    assert summary.to_json() == {**expected.to_json(), "predictions": str(tmp_path / "ray/predictions.jsonl")}
    assert (summary.ok, summary.error) == (len(queries) - 1, 1)


@pytest.mark.usefixtures("cluster")
def test_a_job_resumes_on_a_cluster_and_belongs_to_its_model(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    predict(load(), queries, tmp_path / "out", shard_size=3)
    expected = files_of(tmp_path / "out")
    (tmp_path / "out/shards/00002.jsonl").unlink()
    counted: list[int] = []
    predict_on_cluster(load, queries, tmp_path / "out", shard_size=3, advance=counted.append)
    assert counted == [len(queries) - 3, 3] and files_of(tmp_path / "out") == expected
    with pytest.raises(DataError, match="contains another job"):
        predict_on_cluster(partial(load, name="other"), queries, tmp_path / "out", shard_size=3)


@pytest.mark.usefixtures("cluster")
def test_errors_of_workers_end_the_job(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)[:6]
    with pytest.raises(LaunchError, match=r"^machine .* of the Ray cluster: there is no such model$"):
        predict_on_cluster(fail_to_load, queries, tmp_path / "a")
    with pytest.raises(LaunchError, match="died before any of them finished one of 2 shards"):
        predict_on_cluster(partial(load, always_killed), queries, tmp_path / "b", shard_size=3)


@pytest.mark.usefixtures("cluster")
def test_the_command_gives_the_lines_of_one_machine(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)[:4]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(query.to_json()) + "\n" for query in queries))
    command = ["predict", "shapes", str(tmp_path / "q.jsonl"), "--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "ray"), "--ray"]) == 0
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")


def test_a_machine_that_is_lost_is_not_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """A third machine is added, and the one that answers a certain phrase is lost midway; no other replaces it."""
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    queries = make_queries(tmp_path)
    predict(load(), queries, tmp_path / "one", shard_size=3)
    killed = partial(load, partial(kill_once, tmp_path / "killed", True))
    predict_on_cluster(killed, queries, tmp_path / "ray", shard_size=3)
    assert (tmp_path / "killed").exists()
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
