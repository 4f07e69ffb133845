"""Weights spread over two processes train, resume and answer as a process that holds them whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.train.sharding import check_deepspeed
from tests.launch import ROOT, torchrun, write_home
from tests.train.conftest import adapter_of, largest_difference
from tests.train.sharding_job import ZERO, ZERO_3


def job(home: Path, way: str, *, stop: int = -1) -> int:
    """The exit status; two processes of batch 1, or one of batch 2 that has the weights whole."""
    processes, batch = (1, 2) if way == "whole" else (2, 1)
    script = str(ROOT / "tests/train/sharding_job.py")
    done = torchrun(script, str(home), str(home / way), way, str(batch), str(stop), processes=processes)
    assert done.returncode == 0 or stop >= 0, done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_home(tmp_path_factory.mktemp("home"))
    job(folder, "whole")
    return folder


def ran(home: Path, way: str) -> RunFolder:
    """The run, once; where the weights are spread it is stopped after its checkpoint of step 4, and goes on."""
    if not (home / way).exists():
        if way != "zero2":
            assert job(home, way, stop=5) != 0
            begun = RunFolder(home / way / "run")
            assert [folder.name for folder in begun.whole_checkpoints(2)] == ["checkpoint-4"]
        job(home, way)
    return RunFolder.open(home / way / "run")


@pytest.mark.parametrize("way", ["zero2", "zero3", "fsdp"])
def test_two_processes_train_and_resume_as_one_with_whole_weights(home: Path, way: str) -> None:
    whole, spread = RunFolder.open(home / "whole/run"), ran(home, way)
    losses = [[record["loss"] for record in run.log.read() if "loss" in record] for run in (whole, spread)]
    assert len(losses[1]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert largest_difference(adapter_of(whole.path), adapter_of(spread.path)) <= 1e-4
    best = f"checkpoints/best-{whole.best()[0]}"
    assert largest_difference(adapter_of(whole.path / best), adapter_of(spread.path / best)) <= 1e-4


@pytest.mark.parametrize("way", ["zero3", "fsdp"])
def test_sharding_weights_answer_as_whole_ones(home: Path, way: str) -> None:
    files = home / "whole/said.jsonl", ran(home, way).path.parent / "said.jsonl"
    whole, spread = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(spread) == len(whole) > 0
    for first, second in zip(whole, spread, strict=True):
        assert second == (first if isinstance(first[0], str) else pytest.approx(first, abs=1e-6))


def with_deepspeed(settings: dict[str, Any]) -> Any:
    """As much of TrainingArguments as the check looks at."""
    from accelerate.utils import DeepSpeedPlugin

    return SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings))


def test_deepspeed_wants_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(LaunchError, match=r"a launcher for a single process, too; start the job by `torchrun"):
        check_deepspeed(with_deepspeed(ZERO))


def test_zero_3_must_save_what_it_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    check_deepspeed(with_deepspeed(ZERO))
    check_deepspeed(with_deepspeed(ZERO_3))
    with pytest.raises(RecipeError, match=r"set zero_optimization.stage3_gather_16bit_weights_on_model_save: true"):
        check_deepspeed(with_deepspeed(ZERO | {"zero_optimization": {"stage": 3}}))
