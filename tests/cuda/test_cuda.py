"""Stages on a GPU: results are those of the CPU up to rounding, and batches that do not fit are divided.

All of these tests are skipped without a GPU.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sam4mllm.cli.main import main
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.trainer import fit
from sam4mllm.utils.memory import release_memory
from tests.tiny_home import TINY_RECIPE, write_tiny_home
from tests.training.helpers import make_conversations, make_recipe

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RECIPE = (
    TINY_RECIPE
    + """targets: {{groups: 4, store: {home}/targets}}
lora: {{r: 2, lora_dropout: 0.1}}
training: {{max_steps: 4, per_device_train_batch_size: 2, validate: {{every_steps: 2, samples: 2}}}}
generation: {{max_new_tokens: 24}}
"""
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_home(tmp_path_factory.mktemp("cuda"), RECIPE)


def scores_of(
    home: Path, run: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scores and lines of predictions that are computed from the beginning on a device."""
    capsys.readouterr()
    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    output = run / f"predicted-{device}"
    assert main(["predict", str(run), *data, "--device", device, "--dtype", "float32", "--output", str(output)]) == 0
    capsys.readouterr()
    assert main(["score", str(output / "predictions.jsonl"), *data, "--json", "-"]) == 0
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(capsys.readouterr().out), [json.loads(line) for line in lines]


@pytest.mark.parametrize("method", ["ppg", "pqpp", "pix2emb"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_a_run_trained_on_a_gpu_predicts_the_same_there_and_on_the_cpu(
    home: Path, method: str, half: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = home / f"run-{method}-{half}"
    settings = [f"method={method}", f"output={run}", f"training.bf16={str(half).lower()}"]
    settings += ["training.gradient_checkpointing=true"] if half else []
    assert main(["train", str(home / "recipe.yaml"), *settings, "--device", DEVICE]) == 0
    assert RunFolder.open(run).log.validations().keys() == {2, 4}
    on_gpu, lines = scores_of(home, run, DEVICE, capsys)
    on_cpu, expected = scores_of(home, run, "cpu", capsys)
    assert [line["answer"] for line in lines] == [line["answer"] for line in expected]
    assert on_gpu["ciou"] == pytest.approx(on_cpu["ciou"], abs=0.02)


def test_quantized_weights_are_trained_and_asked(home: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = [f"output={home}/nf4", "model.quantization=4bit", "training.optim=adamw_8bit", "training.bf16=true"]
    assert main(["train", str(home / "recipe.yaml"), *settings, "--device", DEVICE]) == 0
    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    assert main(["evaluate", f"{home}/nf4", *data, "--device", DEVICE]) == 0


def peak_memory(base: str, folder: Path, batch: int) -> int:
    """Train two steps, and return the peak of the memory that torch reserved."""
    folder.mkdir()
    recipe = make_recipe(folder, base, "training.max_steps=2", f"training.per_device_train_batch_size={batch}")
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    mllm = attach_lora(load_mllm(recipe.model.base, device=DEVICE), recipe.lora, recipe.seed)
    fit(mllm, make_conversations(64), recipe, RunFolder.create(recipe))
    return torch.cuda.max_memory_reserved()


def test_a_batch_that_does_not_fit_is_divided(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, large = (peak_memory(str(home / "base"), tmp_path / f"{batch}", batch) for batch in (4, 64))
    assert small < large
    release_memory()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        with caplog.at_level(logging.WARNING):
            peak_memory(str(home / "base"), tmp_path / "limited", 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory with 64 conversations at once" in message for message in caplog.messages)
    steps = [json.loads(line) for line in (tmp_path / "limited/run/train_log.jsonl").read_text().splitlines()]
    assert max(step.get("step", 0) for step in steps) == 2
