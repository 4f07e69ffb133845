"""What a model is asked by is what its answers are taught behind, whatever the published template does."""

from pathlib import Path

import pytest

from sam4mllm.errors import ModelError
from sam4mllm.mllm.chat_template import patch_chat_template
from sam4mllm.mllm.loading import load_processor
from sam4mllm.prompts.conversation import inference_conversation, training_conversation
from sam4mllm.testing import save_tiny_mllm


@pytest.fixture(scope="module", params=["fast_vlm", "idefics3", "llava", "llava_onevision", "qwen2_vl"])
def base(request, tmp_path_factory) -> str:
    return str(save_tiny_mllm(request.param, tmp_path_factory.mktemp(request.param)))


def tokens(processor, conversation, **settings) -> list[int]:
    text = processor.apply_chat_template(conversation.messages(), tokenize=False, **settings)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ["[1,2]", "No object found.", "yes, no"])
def test_the_tokens_asked_are_the_first_of_those_taught(base, answer):
    processor, _ = load_processor(base)
    talk = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", answer)])
    for turn in (1, 3):
        asked = tokens(processor, type(talk)("x.png", talk.turns[:turn]), add_generation_prompt=True)
        assert tokens(processor, talk)[: len(asked)] == asked


def test_what_is_taught_is_left_as_it_was_but_for_the_end_that_an_answer_lacks(base):
    def taught(template: str) -> str:
        return processor.apply_chat_template(talk.messages(), chat_template=template, tokenize=False)

    processor, _ = load_processor(base)
    talk = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", "yes")])
    published = (Path(base) / "chat_template.jinja").read_text()
    assert taught(processor.chat_template).replace("</s>", "") == taught(published)
    assert taught(processor.chat_template).count("</s>") == (2 if "ASSISTANT" in published else 0)


def test_a_server_may_give_what_is_said_as_text(tmp_path):
    processor, _ = load_processor(str(save_tiny_mllm("llava", tmp_path)))
    conversation = training_conversation("x.png", [("Where?", "[1,2]")]).messages()
    as_text = [conversation[0], {"role": "assistant", "content": "[1,2]"}]
    first, second = (
        processor.tokenizer.apply_chat_template(said, chat_template=processor.chat_template, tokenize=False)
        for said in (conversation, as_text)
    )
    assert first == second and first.endswith("ASSISTANT: [1,2]</s> ")


def test_answers_that_cannot_be_ended_are_refused(tmp_path):
    processor, _ = load_processor(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    processor.chat_template = processor.chat_template.replace("{% endfor %}<|im_end|>", "{% endfor %}")
    processor.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="would not learn to stop; put one behind"):
        patch_chat_template(processor)


def test_a_mended_template_is_saved_and_not_mended_again(base, tmp_path):
    processor, _ = load_processor(base)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(base) / "config.json").read_text())
    assert load_processor(str(tmp_path))[0].chat_template == processor.chat_template


def test_a_template_that_asks_as_it_teaches_is_left_alone(qwen2_vl):
    assert load_processor(qwen2_vl)[0].chat_template == (Path(qwen2_vl) / "chat_template.jinja").read_text()


def test_a_model_that_always_thinks_first_is_refused(qwen2_vl):
    processor, _ = load_processor(qwen2_vl)
    prompt = "<|im_start|>assistant\n{% endif %}"
    assert processor.chat_template.endswith(prompt)
    processor.chat_template = processor.chat_template.removesuffix(prompt) + prompt.replace("\n", "\n<think>\n")
    with pytest.raises(ModelError, match=r"asks by '.*<think>\\n' .* answers at once") as caught:
        patch_chat_template(processor)
    assert "\n" not in str(caught.value)


def test_a_model_that_could_think_first_answers_at_once(qwen2_vl):
    """As Qwen3.5 does it: the switch is on unless it is turned off, and the last turn taught has an empty thought."""
    processor, _ = load_processor(qwen2_vl)
    thought = "{% if enable_thinking is defined and enable_thinking is false %}<no>{% else %}<yes>{% endif %}"
    processor.chat_template = processor.chat_template.replace("assistant\n", "assistant\n" + thought).replace(
        "['role'] }}\n", "['role'] }}\n{% if loop.last and message['role'] == 'assistant' %}<no>{% endif %}"
    )
    patch_chat_template(processor)
    asked = processor.apply_chat_template(
        inference_conversation("x.png", "?").messages(), tokenize=False, add_generation_prompt=True
    )
    assert asked.endswith("assistant\n<no>")
    mended = processor.chat_template
    patch_chat_template(processor)
    assert processor.chat_template == mended
