"""Yes and no weighed together after a shared image are what each weighs alone; for every family see the doctor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sam4mllm.doctor.probabilities import weighed_alone
from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion

COUNTS = [(1, 1), (), (7,), (3, 1, 12)]


def inquiries() -> list[YesNoQuery]:
    rng = np.random.default_rng(0)
    found = []
    for index, counts in enumerate(COUNTS):
        image = rng.integers(0, 256, (40 + 20 * index, 60, 3), dtype=np.uint8)
        turns = (Turn("user", "Where is it?" + "x" * 9 * index), Turn("assistant", "[100,200,300,400]"))
        questions = [
            YesNoQuestion("On it? " + "".join(f"({x},{y})" for x, y in rng.integers(100, 999, (count, 2))), count)
            for count in counts
        ]
        found.append(YesNoQuery(Conversation(image, turns), tuple(questions)))
    return found


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl", "idefics3"])
def mllm(request):
    return load_mllm(request.getfixturevalue(request.param))


def test_weighed_together_they_are_as_one_by_one(mllm) -> None:
    asked = inquiries()
    together = TransformersEngine(mllm, 3).score_answers(asked)
    assert [[len(answers) for answers in each] for each in together] == [list(counts) for counts in COUNTS]
    answered = set()
    for inquiry, weighed in zip(asked, together, strict=True):
        for question, weights in zip(inquiry.questions, weighed, strict=True):
            taken: list[bool] = []
            for weight in weights:
                alone = weighed_alone(mllm, inquiry.history, question.text, taken)
                assert np.allclose(alone, weight, atol=1e-4)
                assert math.isclose(alone[0] / alone[1], weight.yes / weight.no, rel_tol=1e-2)
                taken.append(alone[0] > alone[1])
                answered.add(taken[-1])
    assert answered == {True, False}, "all answers are alike, so their order shows nothing"


def test_the_weights_do_not_depend_on_the_batch_and_keep_their_order(mllm) -> None:
    asked = inquiries()
    alone = [TransformersEngine(mllm, 1).score_answers([inquiry])[0] for inquiry in asked]
    for batch_size in (2, 16):
        together = TransformersEngine(mllm, batch_size).score_answers(asked[::-1])[::-1]
        for one, other in zip(alone, together, strict=True):
            for first, second in zip(one, other, strict=True):
                assert np.allclose(first, second, atol=1e-5)
    assert TransformersEngine(mllm, 3).score_answers([]) == []


def test_yes_and_no_are_probabilities(mllm) -> None:
    for weighed in TransformersEngine(mllm, 4).score_answers(inquiries()):
        assert all(0 < weight.yes < 1 and 0 < weight.no < 1 and sum(weight) <= 1 for each in weighed for weight in each)


def test_a_tokenizer_that_joins_answers_is_told(mllm, monkeypatch) -> None:
    whole = type(mllm.processor.tokenizer).__call__

    def joining(self, text, **settings):
        if isinstance(text, list) and len(text) == 4:
            return {"input_ids": [[1, 2], [1, 3], [9, 4], [9, 5]]}
        return whole(self, text, **settings)

    monkeypatch.setattr(type(mllm.processor.tokenizer), "__call__", joining)
    (inquiry,) = inquiries()[:1]
    two = YesNoQuery(inquiry.history, (YesNoQuestion("On it?", 2),))
    with pytest.raises(ModelError, match=r"does not write 'yes, no' answer by answer.*method\.form=single"):
        TransformersEngine(mllm, 1).score_answers([two])
