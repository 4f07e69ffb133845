"""The benchmark of merged adapters on a tiny random model: both models give the same answers in each batch size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.testing import save_tiny_mllm
from tests.scripts import load_script


def test_merged_and_unmerged_adapters_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1))
    settings = {"r": 2, "init_lora_weights": False}
    attach_lora(load_mllm(base), settings, seed=0).model.save_pretrained(tmp_path / "adapter")
    arguments = ["--base", base, "--adapter", str(tmp_path / "adapter"), "--dtypes", "float32", "--device", "cpu"]
    arguments += ["--questions", "3", "--batch-sizes", "1", "2", "--max-new-tokens", "4", "--repeats", "1"]
    load_script("bench_adapter").main([*arguments, "--json", str(tmp_path / "a.json")])
    record: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert list(record["dtypes"]) == ["float32"] and list(record["dtypes"]["float32"]) == ["1", "2"]
    for figures in record["dtypes"]["float32"].values():
        assert figures["same_answer"] == 1.0
        ratio = figures["ms_an_answer_unmerged"] / figures["ms_an_answer_merged"]
        assert figures["unmerged_to_merged"] == pytest.approx(ratio)
    assert "float32, batch of 2" in capsys.readouterr().out


def test_log_probabilities_are_compared_in_identical_answers_alone() -> None:
    difference = load_script("bench_adapter").logprob_difference
    same = (Reply("ab", tokens=((1, -0.5), (2, -1.0))), Reply("ab", tokens=((1, -0.25), (2, -1.5))))
    other = (Reply("ab", tokens=((1, -0.5), (2, -1.0))), Reply("ac", tokens=((1, -9.0), (2, -9.0))))
    assert difference([same, other]) == pytest.approx(0.375)
    assert difference([other]) is None
