"""The benchmark of quantized weights on a tiny model: which parts are quantized, and that their bytes are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts import load_script


def test_the_parts_that_are_quantized_are_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    variants = ["bfloat16", "4bit", "4bit, quantize_vision"]
    arguments = ["--mllm", "tiny", "--device", "cpu", "--variants", *variants, "--json", str(tmp_path / "a.json")]
    load_script("bench_quantization").main(arguments)
    stored, kept, quantized = (json.loads((tmp_path / "a.json").read_text())["variants"][name] for name in variants)
    assert kept["vision tower"]["quantized"] == 0 < quantized["vision tower"]["quantized"]
    assert kept["vision tower"]["loaded"] == stored["vision tower"]["loaded"] > quantized["vision tower"]["loaded"]
    assert kept["language model"]["loaded"] < stored["language model"]["loaded"]
    for part in ("projectors", "output layer"):
        assert kept[part]["quantized"] == quantized[part]["quantized"] == 0 < kept[part]["linear"]
    assert "4bit, quantize_vision" in capsys.readouterr().out
