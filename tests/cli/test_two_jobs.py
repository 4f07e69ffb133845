"""Two jobs on one folder: the second one is refused in one line, and the folder is as the first one left it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.hub import ADAPTER_CONFIG
from tests.launch import write_home

DATA = ["--dataset", "refcoco", "--root", "data", "--split", "val"]

# Subcommand: its arguments, the folder that it locks, and what it does there.
JOBS: dict[str, tuple[list[str], str, str]] = {
    "train": (["recipe.yaml", "output=run"], "run", "training"),
    "prepare": (["recipe.yaml", "output=run", "targets.store=store"], "store/*", "computing targets"),
    "inspect": (["recipe.yaml", "targets.store=store", "--output", "page"], "page", "drawing"),
    "predict": (["made", *DATA, "--output", "out"], "out", "predicting"),
    "evaluate": (["made", *DATA, "--output", "out"], "out", "evaluating"),
    "calibrate": (["made", *DATA], "made", "calibrating"),
    "shapes": (["new", "--scenes", "1"], "new", "writing a data set"),
    "demo": (["--output", "demo"], "demo", "running the demo"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, tiny models, a target store, and a run folder that looks finished."""
    folder = write_home(tmp_path_factory.mktemp("home"))
    recipe = load_recipe(folder / "recipe.yaml", [f"output={folder}/made"])
    (RunFolder.create(recipe, method_of_recipe(recipe)).path / ADAPTER_CONFIG).write_text("{}")
    return folder


@contextmanager
def locked_by_another_job(folder: Path, work: str, *, beside: bool = False) -> Iterator[None]:
    """Let another thread hold the lock, which is refused like that of another process."""
    locked, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with folder_lock(folder, work, beside=beside):
            locked.set()
            ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(10)
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("subcommand", JOBS)
def test_the_second_job_is_refused(
    subcommand: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, pattern, work = JOBS[subcommand]
    monkeypatch.chdir(home)
    if "*" in pattern:
        # The name of a store depends on data, models and settings. Without its shards, targets are to be computed.
        assert main([subcommand, *arguments]) == 0
        (folder,) = Path().glob(pattern)
        for shard in folder.glob("*.parquet"):
            shard.unlink()
    else:
        folder = Path(pattern)
    with locked_by_another_job(folder, work, beside=subcommand == "shapes"):
        before = sorted(home.rglob("*"))
        capsys.readouterr()
        assert main([subcommand, *arguments]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        after = sorted(home.rglob("*"))
    refusal = f"another job is {work} here (process "
    assert error.startswith("sam4mllm: error: ") and f"{folder}: {refusal}" in error
    assert "; wait until it ends, or choose another folder" in error
    assert after == before


def test_complete_targets_are_read_while_another_job_computes_in_their_store(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    arguments = ["prepare", "recipe.yaml", "targets.store=complete", "output=run"]
    assert main(arguments) == 0
    (store,) = Path("complete").iterdir()
    with locked_by_another_job(store, "computing targets"):
        assert main(arguments) == 0
