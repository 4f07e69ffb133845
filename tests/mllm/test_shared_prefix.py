"""Answers from a prefix that the conversations about an image share equal those of transformers' `generate`, alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from sam4mllm.mllm import transformers_engine
from sam4mllm.mllm.cached_rows import CachedRows
from sam4mllm.mllm.decoding import Generated
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.sharded_generation import generate_sharded
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.testing import save_tiny_mllm

PHRASES = ((0, "the ring"), (1, "a"), (0, "the ring left of the star"), (2, "it"), (0, "b"), (2, "the small blue box"))
SIZES_HW = [(64, 64), (30, 90), (90, 61)]
LIMIT = 8


def make_questions() -> list[Conversation]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES_HW]
    return [inference_conversation(images[index], f'Where is "{phrase}"? Box it.') for index, phrase in PHRASES]


def alone(mllm: Mllm, questions: Sequence[Conversation]) -> list[Generated]:
    """Return the answers of transformers' `generate` to each question by itself."""
    return [answer for question in questions for answer in generate_sharded(mllm, [question], [None], LIMIT)]


FAMILIES = ("qwen2_5_vl", "qwen3_5", "gemma3", "gemma4", "idefics3", "lfm2_vl", "minicpmv4_6", "molmo2")
"""Position ids in three axes; recurrent states; sliding windows, shorter than a prompt; shared layers; tiles of an
image; short convolutions; no `logits_to_keep`; attention to later image tokens. `sam4mllm doctor` checks all families.
"""


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request, tmp_path_factory) -> Iterator[Mllm]:
    yield load_mllm(str(save_tiny_mllm(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture()
def images_computed(monkeypatch) -> list[int]:
    """Return the number of images of each batch that goes through the vision tower, as a list that grows."""
    counts = []
    compute = CachedRows.compute

    def counting(mllm: Mllm, inputs: Any) -> Any:
        counts.append(len(inputs["input_ids"]))
        return compute(mllm, inputs)

    monkeypatch.setattr(CachedRows, "compute", counting)
    return counts


def test_answers_of_every_family_equal_those_of_generate(mllm, monkeypatch, images_computed) -> None:
    questions = make_questions()
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", None)
    unstopped = alone(mllm, questions)
    assert len({tuple(answer.tokens) for answer in unstopped}) > 1, "equal answers cannot show a wrong order"
    # As if a token that the first answer comes to were the end token.
    first = unstopped[0].tokens
    end = next((token for token in first if token != first[0]), first[0])
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", end)
    expected = alone(mllm, questions)
    assert expected[0].tokens[-1] == end
    replies = {size: TransformersEngine(mllm, size).generate(questions, LIMIT) for size in (1, 4, 8)}
    for answers in replies.values():
        for reply, answer in zip(answers, expected, strict=True):
            same = transformers_engine._reply(mllm.processor.tokenizer, answer.tokens, answer.logprobs, mllm.end_ids)
            assert reply == same
            assert [position for position, _ in reply.tokens] == [position for position, _ in same.tokens]
            np.testing.assert_allclose([each for _, each in reply.tokens], [each for _, each in same.tokens], atol=1e-4)
    assert images_computed == [1, 1, 1, 3, 3], "an image was computed more than once"
