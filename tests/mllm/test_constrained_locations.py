"""Constrained answers of locations: the location token alone marks an object, and its text cannot be spelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.mllm.chat_template import around_answers
from sam4mllm.mllm.constrained_engine import constrained_engine
from sam4mllm.mllm.constraints import AnswerConstraint, answer_constraints
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.locations import LocationSettings, add_locations
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.answer_form import NO_OBJECT, LocationForm
from sam4mllm.prompts.conversation import LOCATION_TOKEN, inference_conversation, training_conversation
from sam4mllm.testing import save_tiny_mllm

SIZE_WH = (64, 48)


def located(family: str, folder: Path) -> Mllm:
    base = family if family == "shapes" else str(save_tiny_mllm(family, folder / family))
    return add_locations(load_mllm(base), LocationSettings(), seed=0)


def allowed_texts(mllm: Mllm, constraint: AnswerConstraint) -> dict[int, str]:
    """The tokens that can come next, with their text."""
    tokenizer = mllm.processor.tokenizer
    if forced := constraint.forced():
        return {forced[0]: tokenizer.decode(forced[:1])}
    logits = torch.zeros(len(tokenizer))
    constraint.restrict(logits)
    return {index: tokenizer.decode([index]) for index in logits.isfinite().nonzero()[:, 0].tolist()}


@pytest.mark.parametrize("family", ["shapes", "qwen2_5_vl", "llava", "glm46v", "gemma4"])
def test_only_the_token_itself_marks_an_object(family: str, tmp_path: Path) -> None:
    mllm = located(family, tmp_path)
    tokenizer, token = mllm.processor.tokenizer, mllm.location_id
    lead = around_answers(mllm.processor)[0]
    for answer in (NO_OBJECT, LOCATION_TOKEN, LOCATION_TOKEN * 3):
        # The tokens of training are a possible answer, and at no place one that begins the text of the token.
        conversation = training_conversation("", [("?", answer)])
        prompt = mllm.processor.apply_chat_template(
            conversation.messages(1), tokenize=False, add_generation_prompt=True
        )
        text = mllm.processor.apply_chat_template(conversation.messages(), tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids[len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
        end = next(index for index, each in enumerate(ids) if each in mllm.end_ids)
        constraint = answer_constraints(mllm)(LocationForm(), SIZE_WH)
        for position, each in enumerate(ids[: end + 1]):
            allowed = allowed_texts(mllm, constraint)
            assert each in allowed, (answer, position, allowed)
            assert not [text for index, text in allowed.items() if "<" in text and index not in (token, *mllm.end_ids)]
            constraint.accept(each)
        assert ids[: end + 1].count(token) == answer.count(LOCATION_TOKEN) and lead.strip() == ""


def test_a_random_model_answers_in_the_form_with_a_location_for_each_token(tmp_path: Path) -> None:
    mllm = located("fast_vlm", tmp_path)
    rng = np.random.default_rng(0)
    questions = [
        inference_conversation(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), f"Where is {index}?")
        for index in range(4)
    ]
    # The token is about as probable as the end of the answer, so that there are answers of several lengths.
    weight = mllm.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[mllm.location_id] = weight[mllm.end_ids[0]]
    engine = constrained_engine(TransformersEngine(mllm, 3), LocationForm())
    replies = engine.generate_located(questions, 24)
    for reply in replies:
        assert reply.text.replace(LOCATION_TOKEN, "") in ("", NO_OBJECT)
        assert [each.end for each in reply.locations] == [
            len(LOCATION_TOKEN) * (index + 1) for index in range(reply.text.count(LOCATION_TOKEN))
        ]
    assert engine.generate(questions, 24) == [
        type(reply)(reply.text, reply.finished, reply.tokens) for reply in replies
    ]
