"""cuDNN's attention is off while answers are generated and adapters trained, and as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.utils.attention import without_cudnn_attention
from tests.training.helpers import make_recipe, run_fit

cudnn_sdp_enabled = torch.backends.cuda.cudnn_sdp_enabled


@pytest.fixture(params=[True, False], ids=["enabled", "disabled by the user"], autouse=True)
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    default = cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(default)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN's attention was enabled in each call of attention."""
    enabled: list[bool] = []
    compute = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: torch.Tensor, **options: object) -> torch.Tensor:
        enabled.append(cudnn_sdp_enabled())
        return compute(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return enabled


def test_the_setting_is_restored_also_after_an_error(before: bool) -> None:
    with pytest.raises(KeyError), without_cudnn_attention(), without_cudnn_attention():
        assert not cudnn_sdp_enabled()
        raise KeyError
    assert cudnn_sdp_enabled() is before


def test_it_stays_off_until_the_last_of_several_blocks_ends(before: bool) -> None:
    first, second = without_cudnn_attention(), without_cudnn_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not cudnn_sdp_enabled()
    second.__exit__(None, None, None)
    assert cudnn_sdp_enabled() is before


def test_answers_are_generated_without_it(tmp_path, before: bool, seen: list[bool]) -> None:
    engine = TransformersEngine(load_mllm(str(save_tiny_mllm("qwen3_vl", tmp_path))), 1)
    question = inference_conversation(np.zeros((64, 64, 3), np.uint8), "Where?")
    engine.generate([question], 2)
    assert seen and not any(seen)
    generated = len(seen)
    history = Conversation(question.image, (*question.turns, Turn("assistant", "There.")))
    engine.score_answers([YesNoQuery(history, (YesNoQuestion("On it?", 1),))])
    assert len(seen) > generated and not any(seen)
    assert cudnn_sdp_enabled() is before


def test_adapters_are_trained_without_it(tmp_path, before: bool, seen: list[bool]) -> None:
    base = str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1))
    run_fit(make_recipe(tmp_path, base, "training.max_steps=1"))
    assert seen and not any(seen)
    assert cudnn_sdp_enabled() is before
