"""Training with weights sharded over two processes equals training in one process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.arguments import check_deepspeed
from tests.launch import ROOT, torchrun, write_home
from tests.training.helpers import adapter_of, largest_difference
from tests.training.sharding_job import ZERO, ZERO_3


def job(home: Path, mode: str, *, stop: int = -1) -> int:
    """The exit status; two processes with batch 1, or for `unsharded` one process with batch 2."""
    processes, batch = (1, 2) if mode == "unsharded" else (2, 1)
    script = str(ROOT / "tests/training/sharding_job.py")
    done = torchrun(script, str(home), str(home / mode), mode, str(batch), str(stop), processes=processes)
    assert done.returncode == 0 or stop >= 0, done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_home(tmp_path_factory.mktemp("home"))
    job(folder, "unsharded")
    return folder


def run_of(home: Path, mode: str) -> RunFolder:
    """The run, trained once; with ZeRO-3 and FSDP it is interrupted after its checkpoint of step 4 and resumed."""
    if not (home / mode).exists():
        if mode != "zero2":
            assert job(home, mode, stop=5) != 0
            interrupted = RunFolder(home / mode / "run")
            assert [folder.name for folder in interrupted.checkpoints.complete(2)] == ["checkpoint-4"]
        job(home, mode)
    return RunFolder.open(home / mode / "run")


@pytest.mark.parametrize("mode", ["zero2", "zero3", "fsdp"])
def test_two_processes_train_and_resume_as_one_process(home: Path, mode: str) -> None:
    unsharded, sharded = RunFolder.open(home / "unsharded/run"), run_of(home, mode)
    losses = [[record["loss"] for record in run.log.read() if "loss" in record] for run in (unsharded, sharded)]
    assert len(losses[1]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert largest_difference(adapter_of(unsharded.path), adapter_of(sharded.path)) <= 1e-4
    best = f"checkpoints/best-{unsharded.checkpoints.best()[0]}"
    assert largest_difference(adapter_of(unsharded.path / best), adapter_of(sharded.path / best)) <= 1e-4


@pytest.mark.parametrize("mode", ["zero3", "fsdp"])
def test_sharded_weights_give_the_same_answers(home: Path, mode: str) -> None:
    files = home / "unsharded/answers.jsonl", run_of(home, mode).path.parent / "answers.jsonl"
    unsharded, sharded = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(sharded) == len(unsharded) > 0
    for first, second in zip(unsharded, sharded, strict=True):
        assert second == (first if isinstance(first[0], str) else pytest.approx(first, abs=1e-6))


def with_deepspeed(settings: dict[str, Any]) -> Any:
    """The part of TrainingArguments that the check reads."""
    from accelerate.utils import DeepSpeedPlugin

    return SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings))


def test_deepspeed_needs_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(LaunchError, match=r"a launcher even for a single process; start the job by `torchrun"):
        check_deepspeed(with_deepspeed(ZERO))


def test_zero3_must_gather_weights_to_save_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    check_deepspeed(with_deepspeed(ZERO))
    check_deepspeed(with_deepspeed(ZERO_3))
    with pytest.raises(RecipeError, match=r"set zero_optimization.stage3_gather_16bit_weights_on_model_save: true"):
        check_deepspeed(with_deepspeed(ZERO | {"zero_optimization": {"stage": 3}}))
