"""The benchmark of merged adapters on a tiny random model: both models give the same answers in each batch size."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.testing import save_tiny_mllm
from tests.benchmarks.test_bench import run_small
from tests.scripts import load_script


def test_merged_and_unmerged_adapters_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1))
    settings = {"r": 2, "init_lora_weights": False}
    attach_lora(load_mllm(base), settings, seed=0).model.save_pretrained(tmp_path / "adapter")
    arguments = ["--base", base, "--adapter", str(tmp_path / "adapter"), "--dtypes", "float32", "--questions", "3"]
    rows = run_small("bench_adapter", tmp_path, *arguments, "--batch-sizes", "1", "2", "--max-new-tokens", "4")
    works = ["float32, batch of 1", "float32, batch of 2"]
    expected = [(work, variant) for work in works for variant in ("adapter's layers", "merged")]
    assert [(row["work"], row["variant"]) for row in rows] == expected
    assert all(row["same"] == 1.0 for row in rows)
    assert works[1] in capsys.readouterr().out


def test_log_probabilities_are_compared_in_identical_answers_alone() -> None:
    difference = load_script("bench_adapter").logprob_difference
    same = (Reply("ab", tokens=((1, -0.5), (2, -1.0))), Reply("ab", tokens=((1, -0.25), (2, -1.5))))
    other = (Reply("ab", tokens=((1, -0.5), (2, -1.0))), Reply("ac", tokens=((1, -9.0), (2, -9.0))))
    assert difference([same, other]) == pytest.approx(0.375)
    assert difference([other]) is None
