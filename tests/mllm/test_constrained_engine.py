"""Engines whose replies have the form of an answer: equal where the model writes one anyway, and valid where not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sam4mllm.data.images import as_rgb
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import ModelError, ServerError
from sam4mllm.geometry import Grid, ResizedGrid
from sam4mllm.mllm.constrained_engine import (
    constrained_engine,
    constrains_or_warns,
    why_unconstrained,
)
from sam4mllm.mllm.engine import Reply, Sampling, ScoringEngine, open_session
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.mllm.server_engine import ServerEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.answer_form import AnswerForm
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_prompts
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.testing import save_tiny_mllm
from tests.mllm.fake_server import Server

GRAMMAR = AnswerGrammar()
IMAGE = np.zeros((40, 60, 3), np.uint8)
FIELDS = {"structured_outputs", "guided_regex", "regex", "ebnf"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    root = tmp_path_factory.mktemp("shapes")
    write_dataset(root, scenes=1, held_out=4)
    samples = read_dataset("shapes", root=root, split="val")[:16]
    return [inference_conversation(as_rgb(each.image), ask_prompts(each.phrase, 2, 1)) for each in samples]


def size_wh(question: Conversation) -> tuple[int, int]:
    height, width = np.asarray(question.image).shape[:2]
    return width, height


def noisy_model(noise: float) -> Mllm:
    """The embedded model; weights with a noise of 0.6 make some answers malformed, and leave others as they are."""
    mllm = load_mllm("shapes")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in mllm.model.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * noise * weight.std())
    return mllm


@pytest.fixture(scope="module", params=[0.0, 0.6])
def answered(request: pytest.FixtureRequest, questions: list[Conversation]) -> tuple[Mllm, list[Reply], list[Reply]]:
    """A model, its replies, and those with the constraint."""
    mllm = noisy_model(request.param)
    engine = TransformersEngine(mllm, 8)
    constrained = constrained_engine(engine, AnswerGrammar().form(2, 1))
    return mllm, engine.generate(questions, 100), constrained.generate(questions, 100)


def is_parsed(question: Conversation, reply: Reply, grammar: AnswerGrammar = GRAMMAR) -> bool:
    return reply.finished and grammar.parse(reply.text, size_wh(question)).status != "malformed"


def test_answers_that_are_parsed_without_the_constraint_are_equal_with_it(
    questions: list[Conversation], answered: tuple[Mllm, list[Reply], list[Reply]]
) -> None:
    parsed = 0
    for question, before, after in zip(questions, *answered[1:], strict=True):
        assert is_parsed(question, after)
        if is_parsed(question, before):
            parsed += 1
            assert after == before
            # The same probabilities too, those of forced tokens included: they are the model's, not renormalized.
            assert [end for end, _ in after.tokens] == [end for end, _ in before.tokens]
            logprobs = [[logprob for _, logprob in reply.tokens] for reply in (after, before)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
    assert parsed > 6


def test_log_probabilities_are_those_of_the_models_whole_distribution(
    questions: list[Conversation], answered: tuple[Mllm, list[Reply], list[Reply]]
) -> None:
    mllm, _, replies = answered
    compared = 0
    for question, reply in zip(questions, replies, strict=True):
        ids = mllm.processor.tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        if len(ids) != len(reply.tokens):
            continue
        messages = [messages_with_image(question)]
        inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
        count = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = mllm.model(**inputs).logits[0, count - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        assert [logprob for _, logprob in reply.tokens] == pytest.approx(expected, abs=1e-3)
        compared += 1
    assert compared > 6


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_5_vl", "internvl", "llava"])
def random_mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_mllm(str(save_tiny_mllm(request.param, tmp_path_factory.mktemp("base"))))


def random_questions() -> list[Conversation]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(64, 64), (90, 60), (30, 100)]]
    return [inference_conversation(image, f"Where is it?{'x' * index}") for index, image in enumerate(images * 2)]


def test_a_random_models_answers_are_parsed_unless_they_are_cut_off(random_mllm: Mllm) -> None:
    grammar = AnswerGrammar(native_coordinates(random_mllm.family.coordinates, random_mllm.processor) or PLAIN)
    engine, form, asked = TransformersEngine(random_mllm, 4), grammar.form(2, 1), random_questions()
    replies = constrained_engine(engine, form).generate(asked, 400)
    for question, reply, free in zip(asked, replies, engine.generate(asked, 40), strict=True):
        assert is_parsed(question, reply, grammar) == reply.finished
        assert not is_parsed(question, free, grammar)
    # The batch does not matter, nor does a session that computes images once.
    alone = TransformersEngine(random_mllm, 1)
    assert [constrained_engine(alone, form).generate([question], 400)[0] for question in asked] == replies
    with open_session(constrained_engine(engine, form)) as session:
        assert session.generate(asked[:3], 400) + session.generate(asked[3:], 400) == replies


def test_samples_have_the_form_too(questions: list[Conversation]) -> None:
    engine = constrained_engine(TransformersEngine(load_mllm("shapes"), 8), GRAMMAR.form(0, 0))
    drawn = engine.generate_samples(questions[:2], 100, Sampling(3, temperature=3.0))
    for question, replies in zip(questions, drawn, strict=False):
        assert len({reply.text for reply in replies}) > 1
        assert all(is_parsed(question, reply) == reply.finished for reply in replies)


def test_yes_and_no_are_scored_as_without_the_constraint() -> None:
    engine = constrained_engine(TransformersEngine(load_mllm("shapes"), 8), AnswerForm())
    assert isinstance(engine, ScoringEngine) and engine.score_answers([]) == []


def test_an_engine_without_means_for_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match="ScriptedEngine has no means for it; generate without"):
        constrained_engine(ScriptedEngine([]), AnswerForm())
    assert not constrains_or_warns(ScriptedEngine([]), AnswerForm())
    assert caplog.messages == ["answers are not constrained to their form: ScriptedEngine has no means for it"]


def test_a_conversation_without_an_image_is_refused() -> None:
    engine = constrained_engine(TransformersEngine(load_mllm("shapes"), 1), AnswerForm())
    with pytest.raises(ValueError, match="the conversation has none"):
        engine.generate([inference_conversation(None, "Where is it?")], 5)


UNPADDED = Coordinates(ResizedGrid(28, 28 * 28, 28 * 28 * 100), separator=", ", padded=False, far_edge=True)


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_a_server_gets_the_form_of_each_image_as_a_regular_expression(owner: str) -> None:
    form = AnswerForm(UNPADDED, 1, 1)
    images = [np.zeros((56, 84, 3), np.uint8), np.zeros((280, 84, 3), np.uint8)]
    with Server(answer=lambda question: " [1, 2, 3, 4] +(5, 6)", owner=owner) as server:
        engine = constrained_engine(ServerEngine(server.url, concurrency=1), form)
        replies = engine.generate([inference_conversation(image, "q") for image in images], 5)
    assert replies == [Reply("[1, 2, 3, 4] +(5, 6)")] * 2
    regexes = [body["structured_outputs"]["regex"] if owner == "vllm" else body["regex"] for body in server.asked]
    assert regexes == [rf"[ \n]?({form.regex(size)})" for size in [(84, 56), (84, 280)]]
    assert len(set(regexes)) == 2 and re.fullmatch(regexes[0], " [1, 2, 3, 4]")
    others = {"structured_outputs", "guided_regex", "regex", "ebnf"} - {
        "structured_outputs" if owner == "vllm" else "regex"
    }
    assert not others & set(server.asked[0])


def test_without_the_constraint_a_server_gets_no_further_fields() -> None:
    with Server(owner="vllm") as server:
        ServerEngine(server.url).generate([inference_conversation(IMAGE, "q")], 5)
    assert not FIELDS & set(server.asked[0])


@pytest.mark.parametrize("owner", ["", "Qwen"])
def test_a_server_of_another_kind_is_refused(owner: str) -> None:
    # `transformers serve` lists the author of the model.
    with Server(owner=owner) as server:
        engine = ServerEngine(server.url)
        reason = f"neither vLLM nor SGLang (the owner of its model is {owner!r})"
        assert reason in str(why_unconstrained(engine, AnswerForm()))
        with pytest.raises(ModelError, match="neither vLLM nor SGLang"):
            constrained_engine(engine, AnswerForm())


def test_special_tokens_cannot_be_in_a_servers_regular_expression() -> None:
    tagged = Coordinates(Grid((1000, 1000)), ("[[", "]]"), tags=("<box>", "</box>"))
    with Server(owner="vllm") as server, pytest.raises(ModelError, match="written in <box> </box>, which are special"):
        constrained_engine(ServerEngine(server.url), AnswerForm(tagged))


def test_a_server_that_ignores_the_form_is_reported() -> None:
    with (
        Server(owner="vllm") as server,
        pytest.raises(ServerError, match=r"ignores the form of answers.*'echo: q'.*0\.11"),
    ):
        constrained_engine(ServerEngine(server.url), AnswerForm()).generate([inference_conversation(IMAGE, "q")], 5)


def test_a_servers_answer_that_is_cut_off_needs_no_form() -> None:
    with Server(owner="sglang", answer=lambda question: "[001,0") as server:
        (reply,) = constrained_engine(ServerEngine(server.url), AnswerForm()).generate(
            [inference_conversation(IMAGE, "long")], 5
        )
    assert reply == Reply("[001,0", finished=False)
