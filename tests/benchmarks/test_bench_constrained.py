"""The benchmark of constrained decoding: equal answers, malformed ones that become valid, and given tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.prompts.conversation import inference_conversation
from sam4mllm.testing import save_tiny_mllm
from tests.scripts import load_script


def test_answers_of_the_form_are_equal_and_no_others_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    tool = load_script("bench_constrained")
    tool.main(["--questions", "8", "--repeats", "1", "--device", "cpu", "--json", str(file)])
    free, constrained, noisy_free, noisy_constrained = json.loads(file.read_text())["rows"]
    assert (free["same"], constrained["same"]) == (1.0, 1.0)
    assert free["notes"] == constrained["notes"] == {"malformed": 0, "cut off": 0}
    assert noisy_free["notes"]["malformed"] > 0 == noisy_constrained["notes"]["malformed"]
    assert "shapes with noise" in capsys.readouterr().out


def test_the_tokens_of_a_trained_models_answers_are_given_to_a_random_model(tmp_path: Path) -> None:
    tool = load_script("bench_constrained")
    mllm: Mllm = load_mllm(str(save_tiny_mllm("qwen2_5_vl", tmp_path)))
    images = [np.zeros((60, 90, 3), np.uint8), np.zeros((80, 40, 3), np.uint8)]
    questions = [inference_conversation(image, "Where is it?") for image in images]
    options = tool.argparse.Namespace(batch_size=2, repeats=1, device="cpu")
    rows = tool.time_prescribed(mllm, questions, options)
    assert [row.same for row in rows] == [1.0, 1.0]
    tokens = rows[0].notes["tokens"]
    assert tokens == rows[1].notes["tokens"] > 50


def test_a_given_token_is_chosen_among_those_that_are_allowed() -> None:
    tool = load_script("bench_constrained")
    constraint = tool.PrescribedTokens([2, 0], None)
    logits = torch.zeros(4)
    assert constraint.forced() == []
    constraint.restrict(logits)
    assert int(logits.argmax()) == 2
    constraint.accept(2)
    constraint.restrict(logits := torch.zeros(4))
    assert int(logits.argmax()) == 0
