"""Prompts have the same tokens as the text before an answer in training, for every published template.

Templates with thinking blocks are in `test_thinking.py`.
"""

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
def test_the_prompts_tokens_are_a_prefix_of_the_training_conversations(base, answer):
    processor, _ = load_processor(base)
    talk = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", answer)])
    for turn in (1, 3):
        asked = tokens(processor, type(talk)("x.png", talk.turns[:turn]), add_generation_prompt=True)
        assert tokens(processor, talk)[: len(asked)] == asked


def test_the_training_text_is_unchanged_except_for_missing_end_tokens_and_white_space(base):
    def training_text(template: str) -> str:
        return processor.apply_chat_template(talk.messages(), chat_template=template, tokenize=False)

    processor, _ = load_processor(base)
    talk = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", "yes")])
    published = (Path(base) / "chat_template.jinja").read_text()
    patched, expected = training_text(processor.chat_template), training_text(published)
    assert patched.count("</s>") == (2 if "ASSISTANT" in published else 0)
    # LLaVA-OneVision and FastVLM.
    expected = expected.replace("assistant \n", "assistant\n").replace("assistant\n\n", "assistant\n")
    assert patched.replace("</s>", "") == expected


def test_the_published_prompt_is_kept(base):
    """The base was trained and converted with it, so a base that is asked zero shot gets it, too."""
    processor, _ = load_processor(base)
    question = inference_conversation("x.png", "Where?").messages()
    patched, published = (
        processor.apply_chat_template(question, chat_template=template, tokenize=False, add_generation_prompt=True)
        for template in (processor.chat_template, (Path(base) / "chat_template.jinja").read_text())
    )
    assert patched == published


@pytest.mark.parametrize("end", ["", "\n", "{% if false %}{% endif %}\n\n"])
@pytest.mark.parametrize("before", ["assistant \n", "assistant\n\n", "assistant"])
def test_white_space_before_answers_becomes_that_of_the_prompt(qwen2_vl, before, end):
    processor, _ = load_processor(qwen2_vl)
    header = f"{{{{ {before!r} if message['role'] == 'assistant' else message['role'] + '\n' }}}}"
    processor.chat_template = processor.chat_template.replace("{{ message['role'] }}\n", header) + end
    talk = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", "yes")])
    published = processor.apply_chat_template(talk.messages(), tokenize=False)
    patch_chat_template(processor)
    text = processor.apply_chat_template(talk.messages(), tokenize=False)
    assert text == published.replace(f"<|im_start|>{before}", "<|im_start|>assistant\n")
    for turn in (1, 3):
        asked = tokens(processor, type(talk)("x.png", talk.turns[:turn]), add_generation_prompt=True)
        assert tokens(processor, talk)[: len(asked)] == asked
        assert processor.tokenizer.decode(asked).endswith("<|im_start|>assistant\n")


def test_a_prompt_without_special_token_becomes_the_text_in_training(qwen2_vl):
    """A user's text may contain such a header, so nothing is replaced in conversations."""
    processor, _ = load_processor(qwen2_vl)
    processor.chat_template = (
        "{% for message in messages %}{{ message['role'] + '#\n\n' }}{% for part in message['content'] %}"
        "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant#\n{% endif %}"
    )
    talk = training_conversation("x.png", [("Where? assistant#\n\n", "[1,2]")])
    published = processor.apply_chat_template(talk.messages(), tokenize=False)
    patch_chat_template(processor)
    assert processor.apply_chat_template(talk.messages(), tokenize=False) == published
    asked = processor.apply_chat_template(talk.messages(1), tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\nassistant#\n\n")


def test_a_server_may_pass_an_answer_as_plain_text(tmp_path):
    processor, _ = load_processor(str(save_tiny_mllm("llava", tmp_path)))
    conversation = training_conversation("x.png", [("Where?", "[1,2]")]).messages()
    as_text = [conversation[0], {"role": "assistant", "content": "[1,2]"}]
    first, second = (
        processor.tokenizer.apply_chat_template(messages, chat_template=processor.chat_template, tokenize=False)
        for messages in (conversation, as_text)
    )
    assert first == second and first.endswith("ASSISTANT: [1,2]</s> ")


def test_a_template_without_any_end_token_is_refused(tmp_path):
    processor, _ = load_processor(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    processor.chat_template = processor.chat_template.replace("{% endfor %}<|im_end|>", "{% endfor %}")
    processor.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="would not learn to stop; put a special token after"):
        patch_chat_template(processor)


def test_a_patched_template_is_saved_and_not_patched_again(base, tmp_path):
    processor, _ = load_processor(base)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(base) / "config.json").read_text())
    assert load_processor(str(tmp_path))[0].chat_template == processor.chat_template


def test_a_template_with_equal_prompts_is_not_changed(qwen2_vl):
    assert load_processor(qwen2_vl)[0].chat_template == (Path(qwen2_vl) / "chat_template.jinja").read_text()


def test_a_model_with_a_thinking_switch_answers_at_once(qwen2_vl):
    """As in Qwen3.5: thinking is on by default, and the last turn in training has an empty thought."""
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
    patched = processor.chat_template
    patch_chat_template(processor)
    assert processor.chat_template == patched
