"""Reading once per machine: one process computes, the others of its machine get a copy, and an error ends all."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.utils import distributed
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.shared_result import read_shared, write_shared
from tests.launch import in_threads

# Machines by rank: ranks 0, 2 and 3 on one, rank 1 alone.
MACHINES = ("a", "b", "a", "a")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The ranks that compute; each thread is a process of one of two machines."""
    rank = threading.local()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(distributed, "_machine", lambda: MACHINES[rank.number])
    ranks: list[int] = []
    monkeypatch.setattr(DistributedContext, "ranks", ranks, raising=False)
    monkeypatch.setattr(DistributedContext, "here", rank, raising=False)
    return ranks


def _work(processes: DistributedContext) -> object:
    processes.here.number = processes.rank  # type: ignore[attr-defined]

    def compute() -> dict[str, object]:
        processes.ranks.append(processes.rank)  # type: ignore[attr-defined]
        return {"path": Path("a"), "by": processes.rank}

    return processes.compute_on_machine(compute), processes.gather(processes.rank)


def test_the_first_process_of_each_machine_computes(computed: list[int], tmp_path: Path) -> None:
    results = in_threads(4, _work)
    assert sorted(computed) == [0, 1]
    assert [result["by"] for result, _ in results] == [0, 1, 0, 0] and results[2][0]["path"] == Path("a")
    assert all(ranks == [0, 1, 2, 3] for _, ranks in results)
    assert list(tmp_path.iterdir()) == [], "the file of the result must not be left behind"


def test_processes_that_cannot_read_the_file_compute(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "write_shared", lambda *_: "/no/such/file")
    results = in_threads(4, _work)
    assert sorted(computed) == [0, 1, 2, 3] and [result["by"] for result, _ in results] == [0, 1, 2, 3]


def test_every_process_reports_an_error_of_the_data() -> None:
    def work(processes: DistributedContext) -> str:
        with pytest.raises(DataError) as error:
            processes.compute_on_machine(lambda: read_dataset("refcoco", "no-such-folder", "val"))
        return str(error.value)

    first, second = in_threads(2, work)
    assert first == second and "no-such-folder" in first


def test_a_single_process_computes_without_a_file() -> None:
    assert SINGLE_PROCESS.compute_on_machine(lambda: {1, 2}) == {1, 2}


def test_the_file_of_another_user_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shared([1], tmp_path)
    assert read_shared(path, lambda: [2]) == [1]
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert read_shared(path, lambda: [2]) == [2]


def test_a_full_disk_leaves_no_path(tmp_path: Path) -> None:
    assert write_shared([1], tmp_path / "missing") == ""
    assert read_shared("", lambda: [2]) == [2]


def test_a_mixture_is_the_same_after_the_copy(tmp_path: Path) -> None:
    from sam4mllm.recipe.loading import load_recipe

    write_dataset(tmp_path / "data", scenes=2, held_out=2)
    keys = ("train.0", "train.1", "train.2", "validation")
    recipe = load_recipe("shapes_ppg", [f"data.{key}.root={tmp_path}/data" for key in keys])
    mixture = read_mixture(recipe.data, 0)
    assert read_shared(write_shared(mixture, tmp_path), lambda: pytest.fail("computed again")) == mixture
