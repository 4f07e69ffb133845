"""Answers from a prefix that the conversations about an image share equal those of transformers' `generate`, alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.errors import ModelError
from sam4mllm.mllm import transformers_engine
from sam4mllm.mllm.cached_rows import CachedRows
from sam4mllm.mllm.decoding import Generated, decode, reply_of
from sam4mllm.mllm.engine import Sampling
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.sharded_generation import generate_sharded
from sam4mllm.mllm.shared_prefix import SharedPrefixes, make_prompts
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion
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

    def counting(mllm: Mllm, inputs: Any, tokens: Any) -> Any:
        counts.append(len(inputs["input_ids"]))
        return compute(mllm, inputs, tokens)

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
            same = reply_of(mllm.processor.tokenizer, answer.tokens, answer.logprobs, mllm.end_ids)
            assert reply == same
            assert [position for position, _ in reply.tokens] == [position for position, _ in same.tokens]
            np.testing.assert_allclose([each for _, each in reply.tokens], [each for _, each in same.tokens], atol=1e-4)
    assert images_computed == [1, 1, 1, 3, 3], "an image was computed more than once"


def test_chat_without_an_image_shares_a_batch_with_other_questions(mllm) -> None:
    chat = [Conversation(None, (Turn("user", text),)) for text in ("Why is the sky blue?", "Hi!", "Hi!")]
    TransformersEngine(mllm, 8).generate(make_questions()[:1], 1)
    for questions in ([*make_questions()[:3], *chat], chat):
        expected = [
            mllm.processor.tokenizer.decode(each.tokens, skip_special_tokens=True) for each in alone(mllm, questions)
        ]
        replies = TransformersEngine(mllm, 8).generate(questions, LIMIT)
        assert [reply.text for reply in replies] == [text.strip() for text in expected]


def flat(scored: list[list[list[YesNo]]]) -> list[float]:
    return [each for query in scored for answers in query for probability in answers for each in probability]


def test_a_session_scores_points_from_the_images_of_round_one(mllm, images_computed) -> None:
    questions = make_questions()
    points = (YesNoQuestion("On (1,2)(3,4)?", 2), YesNoQuestion("On (5,6)?", 1))
    queries = [
        YesNoQuery(Conversation(each.image, (*each.turns, Turn("assistant", f"[{index},2]"))), points[: 1 + index % 2])
        for index, each in enumerate(questions)
    ]
    engine = TransformersEngine(mllm, 4)
    # The third time, round two is also about phrases that round one was not: the end of a stored prompt is removed,
    # or, where the cache does not allow it, the image is computed again.
    for asked, scored, again in (
        (questions, queries, {0}),
        (questions[:2], queries[:2], {0}),
        (questions[:2], queries, {1, 2}),
    ):
        expected = engine.generate(asked, 3), flat(engine.score_answers(scored))
        images_computed.clear()
        with engine.session() as session:
            assert session.generate(asked, 3) == expected[0]
            assert sum(images_computed) == len({id(each.image) for each in asked})
            images_computed.clear()
            np.testing.assert_allclose(flat(session.score_answers(scored)), expected[1], atol=1e-5)
        assert sum(images_computed) in again
    images_computed.clear()
    # After the session nothing is kept.
    engine.generate(questions[:1], 1)
    assert images_computed == [1]


class Alternating:
    """A constraint: two tokens are forced, the third is the second most probable one, twice; then the answer ends."""

    def __init__(self, end: int) -> None:
        self.tokens: list[int] = []
        self.end = end

    def forced(self) -> list[int]:
        place = len(self.tokens)
        return [self.end] if place == 6 else [90, 91][place % 3 :]

    def restrict(self, logits: torch.Tensor) -> None:
        logits[logits.argmax()] = float("-inf")
        logits[self.end] = float("-inf")

    def accept(self, token: int) -> None:
        self.tokens.append(token)


def test_constrained_answers_equal_those_that_are_fed_one_by_one(mllm) -> None:
    questions = make_questions()
    end, limit = mllm.end_ids[0], 7
    kinds: list[Any] = [lambda: Alternating(end), None, lambda: Alternating(end), None, None, lambda: Alternating(end)]
    expected = [
        generate_sharded(mllm, [question], [kind() if kind else None], limit)[0]
        for question, kind in zip(questions, kinds, strict=True)
    ]
    assert [len(answer.tokens) for answer, kind in zip(expected, kinds, strict=True) if kind] == [7, 7, 7]
    with torch.no_grad():
        prompts = make_prompts(mllm, questions)
        rows, logits = SharedPrefixes(mllm, prompts).rows_and_logits(prompts)
        answers = [Generated(kind() if kind else None) for kind in kinds]
        decode(rows, logits, answers, limit, mllm.end_ids)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.tokens == other.tokens
        shown = len(answer.tokens) - (answer.tokens[-1] in mllm.end_ids)
        np.testing.assert_allclose(answer.logprobs[:shown], other.logprobs[:shown], atol=1e-4)


def test_samples_depend_on_the_seed_alone_and_follow_the_distribution(mllm) -> None:
    questions = make_questions()
    sampling = Sampling(3, temperature=1.5, seed=7)
    samples = TransformersEngine(mllm, 8).generate_samples(questions, 4, sampling)
    assert [len(each) for each in samples] == [3] * len(questions)
    assert len({reply.text for each in samples for reply in each}) > len(questions)
    assert TransformersEngine(mllm, 2).generate_samples(questions[::-1], 4, sampling) == samples[::-1]
    assert TransformersEngine(mllm, 8).generate_samples(questions, 4, replace(sampling, seed=8)) != samples
    cold = TransformersEngine(mllm, 8).generate_samples(questions, 4, replace(sampling, temperature=1e-6))
    greedy = TransformersEngine(mllm, 8).generate(questions, 4)
    assert cold == [[reply] * 3 for reply in greedy]


def test_forced_tokens_need_no_pass_of_their_own(mllm, monkeypatch) -> None:
    questions, widths = make_questions(), []
    factories = [partial(Alternating, mllm.end_ids[0])] * len(questions)
    forward = mllm.model.forward

    def counting(*args: Any, **inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return forward(*args, **inputs)

    prompts = make_prompts(mllm, questions)
    with torch.no_grad():
        rows, logits = SharedPrefixes(mllm, prompts).rows_and_logits(prompts)
        monkeypatch.setattr(mllm.model, "forward", counting)
        decode(rows, logits, [Generated(factory()) for factory in factories], 9, mllm.end_ids)
    assert widths == [2, 3]


def test_a_session_drops_images_where_memory_runs_out(tmp_path, monkeypatch, images_computed) -> None:
    mllm = load_mllm(str(save_tiny_mllm("qwen2_5_vl", tmp_path)))
    questions, engine = make_questions(), TransformersEngine(mllm, 8)
    expected = engine.generate(questions, 3)
    images_computed.clear()
    compute, kept = CachedRows.compute, []

    with engine.session() as session:
        session.generate(questions[:1], 3)

        def with_room_for_one_batch(*given: Any) -> Any:
            kept.append(len(session._store))
            if session._store:
                raise torch.OutOfMemoryError("no room")
            return compute(*given)

        monkeypatch.setattr(CachedRows, "compute", with_room_for_one_batch)
        assert session.generate(questions, 3) == expected
    assert kept == [1, 0] and images_computed == [1, 3] and engine.batch.size == 8


def test_prefixes_that_are_not_shared_are_freed_while_answers_are_decoded(tmp_path, monkeypatch) -> None:
    mllm = load_mllm(str(save_tiny_mllm("qwen2_5_vl", tmp_path, seed=1)))
    questions = make_questions()
    compute, tensors, alive = CachedRows.compute, [], []

    def watching(*given: Any) -> Any:
        rows, logits = compute(*given)
        tensors.append(weakref.ref(rows.cache.layers[0].keys))
        return rows, logits

    def noticing(*given: Any) -> None:
        decode(*given)
        assert len(given[2][0].tokens) == 3
        alive.append(tensors[-1]() is not None)

    monkeypatch.setattr(CachedRows, "compute", watching)
    monkeypatch.setattr(transformers_engine, "decode", noticing)
    engine = TransformersEngine(mllm, 8)
    engine.generate(questions[:2], 3)
    engine.generate(questions, 3)
    with engine.session() as session:
        session.generate(questions[:2], 3)
    assert alive == [False, True, True]
    assert tensors[-1]() is None


def test_sharded_weights_generate_the_same_answers_by_transformers_loop(tmp_path, monkeypatch, images_computed) -> None:
    engine = TransformersEngine(load_mllm(str(save_tiny_mllm("qwen2_5_vl", tmp_path, seed=1))), 4)
    questions = make_questions()
    factories = [partial(Alternating, engine.mllm.end_ids[0]), *[None] * (len(questions) - 1)]
    expected = engine.generate(questions, LIMIT, constraints=factories)
    images_computed.clear()
    monkeypatch.setattr(transformers_engine, "sharded_over_processes", lambda _: True)
    assert engine.generate(questions, LIMIT, constraints=factories) == expected
    assert images_computed == []
    with pytest.raises(ModelError, match="sharded over processes"):
        engine.generate_samples(questions, LIMIT, Sampling(2))
