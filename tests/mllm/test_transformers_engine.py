import numpy as np
import pytest
import torch

from sam4mllm.errors import DataError
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation, training_conversation

SIZES = [(64, 64), (90, 60), (30, 120), (64, 64), (80, 80)]


def questions() -> list[Conversation]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return [inference_conversation(image, "Where is it?" + "x" * 9 * index) for index, image in enumerate(images)]


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl"])
def mllm(request):
    return load_mllm(request.getfixturevalue(request.param))


def test_replies_do_not_depend_on_the_batch_and_keep_their_order(mllm):
    asked = questions()
    alone = [TransformersEngine(mllm, 1).generate([question], 8)[0] for question in asked]
    assert len({reply.text for reply in alone}) > 1
    for batch_size in (2, 5):
        assert TransformersEngine(mllm, batch_size).generate(asked, 8) == alone
    assert TransformersEngine(mllm, 3).generate(asked[::-1], 8) == alone[::-1]
    assert TransformersEngine(mllm, 3).generate([], 8) == []


def test_a_reply_has_the_log_probability_of_each_token(mllm, monkeypatch):
    question = questions()[0]
    messages = [messages_with_image(question)]
    inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", None)
    (cut_off,) = TransformersEngine(mllm, 1).generate([question], 6)
    assert not cut_off.finished and cut_off.text and cut_off.tokens == () and cut_off.mean_logprob() is None
    with torch.inference_mode():
        tokens = mllm.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        logits = mllm.model(**inputs).logits[0, -1].float()
    # As if the last of them were the end token.
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", tokens[-1].item())
    (reply,) = TransformersEngine(mllm, 1).generate([question], 9)
    assert reply.finished and reply.tokens[0][1] == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)
    ends = [end for end, _ in reply.tokens]
    assert ends == sorted(set(ends)) and ends[-1] == len(reply.text)
    assert reply.mean_logprob() == pytest.approx(sum(log for _, log in reply.tokens) / len(reply.tokens))


@pytest.mark.parametrize(
    ("start", "end", "mean"),
    [(0, None, -2.5), (0, 4, -1.5), (4, 9, -3.5), (5, 6, -3.0), (3, 5, -2.5), (4, 4, None), (9, None, None)],
)
def test_the_mean_logprob_is_over_the_tokens_that_overlap_the_span(start, end, mean):
    reply = Reply("a bc[123]", tokens=((1, -1.0), (4, -2.0), (8, -3.0), (9, -4.0)))
    assert reply.mean_logprob(start, end) == mean
    assert Reply("a bc[123]").mean_logprob(start, end) is None


def test_a_reply_is_finished_if_its_end_token_is_within_the_limit(mllm, monkeypatch):
    asked = questions()
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", None)
    unstopped = []
    for question in asked:
        messages = [messages_with_image(question)]
        inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
        with torch.inference_mode():
            tokens = mllm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        unstopped.append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
    # As if what the first answer comes to were the end token.
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", unstopped[0][-1])
    seen = set()
    for limit in range(1, 7):
        expected = [not set(mllm.end_ids).isdisjoint(tokens[:limit]) for tokens in unstopped]
        for batch_size in (1, 5):
            replies = TransformersEngine(mllm, batch_size).generate(asked, limit)
            assert [reply.finished for reply in replies] == expected
        seen.update(expected)
    assert seen == {True, False}


def test_left_padded_logits_equal_those_of_singles(mllm):
    messages = [messages_with_image(question) for question in questions()]

    def last_logits(chosen) -> torch.Tensor:
        inputs = model_inputs(mllm.processor, chosen, padding_side="left", add_generation_prompt=True)
        with torch.inference_mode():
            # The position of a token counts from the first that is no padding, as in generation.
            return mllm.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            ).logits[0]

    together = last_logits(messages)
    for row, message in enumerate(messages):
        torch.testing.assert_close(together[row], last_logits([message])[0], atol=1e-5, rtol=1e-5)


def test_the_checkpoints_generation_config_does_not_change_greedy_decoding(mllm):
    engine = TransformersEngine(mllm, 5)
    plain = engine.generate(questions(), 8)
    config = mllm.model.generation_config
    before = (config.do_sample, config.repetition_penalty, config.temperature)
    config.do_sample, config.repetition_penalty, config.temperature = True, 5.0, 9.0
    try:
        assert engine.generate(questions(), 8) == plain
    finally:
        config.do_sample, config.repetition_penalty, config.temperature = before


def test_the_model_is_returned_to_its_former_mode(mllm):
    for training in (True, False):
        mllm.model.train(training)
        TransformersEngine(mllm, 2).generate(questions()[:1], 2)
        assert mllm.model.training is training


def test_invalid_requests_are_refused(mllm, tmp_path):
    engine = TransformersEngine(mllm, 2)
    with pytest.raises(ValueError, match="last turn must be the user's"):
        engine.generate([training_conversation(np.zeros((8, 8, 3), np.uint8), [("q", "a")])], 4)
    with pytest.raises(DataError, match="no such file"):
        engine.generate([inference_conversation(tmp_path / "none.jpg", "q")], 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        TransformersEngine(mllm, 0)


def test_an_input_that_the_processor_refuses_is_an_error_of_one_line(qwen2_vl):
    engine = TransformersEngine(load_mllm(qwen2_vl), 2)
    with pytest.raises(DataError, match=r"refuses an image \(of 300 x 1 pixels\).*aspect ratio") as caught:
        engine.generate([inference_conversation(np.zeros((1, 300, 3), np.uint8), "Where?")], 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"Where is .* holds '<\|image_pad\|>', .*control token"):
        engine.generate([inference_conversation(np.zeros((64, 64, 3), np.uint8), "Where is <|image_pad|>?")], 1)


def test_scripted_answers_by_order_by_part_of_the_question_and_by_function():
    asked = [
        inference_conversation("a.jpg", 'Where is "the ring"?'),
        inference_conversation("a.jpg", 'Where is "the red ring"?'),
    ]
    assert ScriptedEngine(["one", Reply("two", False)]).generate(asked, 1) == [Reply("one", True), Reply("two", False)]
    assert ScriptedEngine({"ring": "any", "red ring": "red"}).generate(asked, 1) == [Reply("any"), Reply("red")]
    engine = ScriptedEngine(lambda conversation: conversation.turns[-1].text.upper())
    assert engine.generate(asked, 1)[0].text == 'WHERE IS "THE RING"?'
    assert engine.asked == asked


def test_a_question_without_a_scripted_answer_is_an_error():
    question = Conversation("a.jpg", (Turn("user", "Where is it?"),))
    with pytest.raises(LookupError, match="asked once more"):
        ScriptedEngine([]).generate([question], 1)
    with pytest.raises(LookupError, match="no scripted answer"):
        ScriptedEngine({"ring": "x"}).generate([question], 1)
