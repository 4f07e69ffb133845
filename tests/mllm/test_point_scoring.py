"""Yes/no probabilities scored in a batch equal those of single passes; `sam4mllm doctor` checks every family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sam4mllm.errors import ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.testing import save_tiny_mllm

COUNTS = [(1, 1), (), (7,), (3, 1, 12)]


def make_queries() -> list[YesNoQuery]:
    rng = np.random.default_rng(0)
    queries = []
    for index, counts in enumerate(COUNTS):
        image = rng.integers(0, 256, (40 + 20 * index, 60, 3), dtype=np.uint8)
        turns = (Turn("user", "Where is it?" + "x" * 9 * index), Turn("assistant", "[100,200,300,400]"))
        questions = [
            YesNoQuestion("On it? " + "".join(f"({x},{y})" for x, y in rng.integers(100, 999, (count, 2))), count)
            for count in counts
        ]
        queries.append(YesNoQuery(Conversation(image, turns), tuple(questions)))
    return queries


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model whose answers differ; with seed 0 all of them are yes."""
    return str(save_tiny_mllm("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"), seed=1))


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl", "idefics3"])
def mllm(request):
    return load_mllm(request.getfixturevalue(request.param))


def score_alone(mllm: Mllm, history: Conversation, question: str, previous: list[bool]) -> tuple[float, float]:
    """Return the probabilities of yes and no for the next answer, from a pass over the full conversation."""
    rows = []
    for answer in (True, False):
        turns = (Turn("user", question), Turn("assistant", write_answers([*previous, answer])))
        conversation = Conversation(history.image, (*history.turns, *turns))
        rows.append(model_inputs(mllm.processor, [messages_with_image(conversation)], padding_side="left"))
    yes, no = (row["input_ids"][0].tolist() for row in rows)
    position = next(index for index, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    with torch.no_grad():
        distribution = mllm.model(**rows[0].to(mllm.dtype)).logits[0, position - 1].float().softmax(dim=-1)
    return float(distribution[yes[position]]), float(distribution[no[position]])


def test_probabilities_of_a_batch_equal_those_of_single_passes(mllm) -> None:
    asked = make_queries()
    together = TransformersEngine(mllm, 3).score_answers(asked)
    assert [[len(answers) for answers in each] for each in together] == [list(counts) for counts in COUNTS]
    seen = set()
    for query, scored in zip(asked, together, strict=True):
        for question, probabilities in zip(query.questions, scored, strict=True):
            previous: list[bool] = []
            for probability in probabilities:
                alone = score_alone(mllm, query.history, question.text, previous)
                assert np.allclose(alone, probability, atol=1e-4)
                assert math.isclose(alone[0] / alone[1], probability.yes / probability.no, rel_tol=1e-2)
                previous.append(alone[0] > alone[1])
                seen.add(previous[-1])
    assert seen == {True, False}, "all answers are equal, so the test cannot detect a wrong order"


def test_probabilities_do_not_depend_on_the_batch_and_keep_their_order(mllm) -> None:
    asked = make_queries()
    alone = [TransformersEngine(mllm, 1).score_answers([query])[0] for query in asked]
    for batch_size in (2, 16):
        together = TransformersEngine(mllm, batch_size).score_answers(asked[::-1])[::-1]
        for one, other in zip(alone, together, strict=True):
            for first, second in zip(one, other, strict=True):
                assert np.allclose(first, second, atol=1e-5)
    assert TransformersEngine(mllm, 3).score_answers([]) == []


def test_yes_and_no_are_probabilities(mllm) -> None:
    for scored in TransformersEngine(mllm, 4).score_answers(make_queries()):
        assert all(
            0 < probability.yes < 1 and 0 < probability.no < 1 and sum(probability) <= 1
            for each in scored
            for probability in each
        )


def test_a_tokenizer_that_joins_answers_is_an_error(mllm, monkeypatch) -> None:
    original = type(mllm.processor.tokenizer).__call__

    def joining(self, text, **settings):
        if isinstance(text, list) and len(text) == 4:
            return {"input_ids": [[1, 2], [1, 3], [9, 4], [9, 5]]}
        return original(self, text, **settings)

    monkeypatch.setattr(type(mllm.processor.tokenizer), "__call__", joining)
    (query,) = make_queries()[:1]
    two = YesNoQuery(query.history, (YesNoQuestion("On it?", 2),))
    with pytest.raises(ModelError, match=r"does not write 'yes, no' answer by answer.*method\.form=single"):
        TransformersEngine(mllm, 1).score_answers([two])


def flat(scored: list[list[list[YesNo]]]) -> list[YesNo]:
    return [probability for query in scored for answers in query for probability in answers]


def test_scoring_divides_batches_of_questions_and_of_histories_where_memory_runs_out(mllm, monkeypatch, caplog) -> None:
    asked = make_queries()
    expected = TransformersEngine(mllm, 4).score_answers(asked)
    forward = mllm.model.forward

    def with_room_for_one(*args, **inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(*args, **inputs)

    monkeypatch.setattr(mllm.model, "forward", with_room_for_one)
    scored = TransformersEngine(mllm, 4).score_answers(asked)
    for one, other in zip(*(flat(each) for each in (scored, expected)), strict=True):
        assert (one.yes, one.no) == pytest.approx((other.yes, other.no), abs=1e-4)
    messages = [record.getMessage() for record in caplog.records if record.name == "sam4mllm.utils.memory"]
    assert [message.partition(" from now")[0] for message in messages] == [
        "out of memory with 4 conversations at once; 1 at once"
    ]
