"""Chat templates with thinking blocks: prompts equal those in training, and every answer of a conversation is kept."""

from __future__ import annotations

from typing import Any

import pytest

from sam4mllm.errors import ModelError
from sam4mllm.mllm.chat_template import patch_chat_template, renders_several_answers
from sam4mllm.mllm.loading import load_processor
from sam4mllm.prompts.conversation import Conversation, inference_conversation, training_conversation

EMPTY = "<think>\n\n</think>\n\n"
SWITCH = "{{ '" + EMPTY + "' if enable_thinking is defined and not enable_thinking else '<think>\n' }}"
LAST_QUESTION = (
    "{% set ns = namespace(last_query_index=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last_query_index = loop.index0 %}{% endif %}{% endfor %}"
)
TALK = training_conversation("x.png", [("Where?", "[1,2]"), ("And there?", "yes"), ("Here?", "No object found.")])


def template(prompt: str, thought: str = EMPTY, where: str = "true", header: str = "assistant") -> str:
    """ChatML with `thought` before the answers for which the condition `where` holds, and a generation prompt."""
    return (
        LAST_QUESTION
        + "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        + f"{{% if message.role == 'assistant' and ({where}) %}}{{{{ {thought!r} }}}}{{% endif %}}"
        + "{% for part in message.content %}{{ '<|image_pad|>' if part.type == 'image' else part.text }}{% endfor %}"
        + "{{ '<|im_end|>\n' }}{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ '<|im_start|>{header}\n' }}}}{prompt}{{% endif %}}"
    )


@pytest.fixture
def processor(qwen2_vl: str) -> Any:
    return load_processor(qwen2_vl)[0]


def text(processor: Any, conversation: Conversation, **settings: bool) -> str:
    return processor.apply_chat_template(conversation.messages(), tokenize=False, **settings)


def check_prompts(processor: Any) -> None:
    """The prompt for each answer of `TALK` is, in text and tokens, what precedes it in training."""
    full = text(processor, TALK)
    for turn in (1, 3, 5):
        prompt = text(processor, Conversation("x.png", TALK.turns[:turn]), add_generation_prompt=True)
        assert full.startswith(prompt + TALK.turns[turn].text)
        ids, all_ids = (processor.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, full))
        assert all_ids[: len(ids)] == ids


@pytest.mark.parametrize(
    "where",
    [
        "loop.index0 > ns.last_query_index",  # Qwen3.5, MiniCPM-V 4.6
        "(preserve_thinking is defined and preserve_thinking) or loop.index0 > ns.last_query_index",  # Qwen3.6
        "not clear_thinking | default(true) or loop.index0 > ns.last_query_index",  # GLM
        "loop.index0 > ns.last_query_index and (loop.last or reasoning_content)",  # Qwen3-VL-Thinking
        "loop.last",
    ],
)
@pytest.mark.parametrize("prompt", [SWITCH, "{{ '<think>\n' }}"], ids=["switch", "always"])
def test_every_answer_has_the_thinking_block_of_its_prompt(processor: Any, where: str, prompt: str) -> None:
    processor.chat_template = template(prompt, where=where)
    published = text(processor, training_conversation("x.png", [("Where?", "[1,2]")]))
    assert not renders_several_answers(processor)
    patch_chat_template(processor)
    assert renders_several_answers(processor)
    check_prompts(processor)
    assert text(processor, TALK).count(EMPTY) == 3
    assert text(processor, training_conversation("x.png", [("Where?", "[1,2]")])) == published
    patched = processor.chat_template
    patch_chat_template(processor)
    assert processor.chat_template == patched


@pytest.mark.parametrize(
    ("thought", "prompt"),
    [("", "<think>\n"), (EMPTY, "<think>\n"), (EMPTY, "")],
    ids=["only the prompt opens", "the prompt opens", "only training has it"],
)
def test_the_text_of_training_is_the_prompt_where_one_begins_with_the_other(
    processor: Any, thought: str, prompt: str
) -> None:
    """As in Qwen3-VL-Thinking."""
    processor.chat_template = template(f"{{{{ {prompt!r} }}}}", thought)
    published = text(processor, TALK)
    patch_chat_template(processor)
    check_prompts(processor)
    assert text(processor, TALK) == published
    asked = text(processor, inference_conversation("x.png", "?"), add_generation_prompt=True)
    assert asked.endswith("<|im_start|>assistant\n" + thought)


@pytest.mark.parametrize("thought", [EMPTY, "<|think>thought\n<think|>"])
def test_the_closed_thinking_block_of_a_prompt_precedes_the_answers_in_training(processor: Any, thought: str) -> None:
    """As in Gemma 4 31B: the base was made to answer behind it."""
    processor.chat_template = template(f"{{{{ {thought!r} }}}}", thought="")
    published = text(processor, inference_conversation("x.png", "?"), add_generation_prompt=True)
    patch_chat_template(processor)
    assert renders_several_answers(processor)
    check_prompts(processor)
    assert text(processor, inference_conversation("x.png", "?"), add_generation_prompt=True) == published
    assert text(processor, TALK).count("assistant\n" + thought) == text(processor, TALK).count(thought) == 3
    patched = processor.chat_template
    patch_chat_template(processor)
    assert processor.chat_template == patched


def test_a_template_that_drops_earlier_answers_is_not_changed(processor: Any) -> None:
    processor.chat_template = template("", thought="").replace(
        "else part.text", "else part.text if message in messages[-2:]"
    )
    published = processor.chat_template
    patch_chat_template(processor)
    assert not renders_several_answers(processor)
    assert processor.chat_template == published


def test_a_template_that_raises_an_error_for_two_answers_serves_one(processor: Any) -> None:
    processor.chat_template = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + template(
        "", thought=""
    )
    patch_chat_template(processor)
    assert not renders_several_answers(processor)


def test_a_prompt_of_other_text_is_refused_with_both_texts(processor: Any) -> None:
    processor.chat_template = template("", thought="", header="bot")
    with pytest.raises(ModelError, match=r"is '<\|im_start\|>bot\\n', but .* '<\|im_start\|>assistant\\n'") as caught:
        patch_chat_template(processor)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_equal_text_and_other_tokens_is_refused_with_the_tokens(processor: Any) -> None:
    """The question ends in a space, which the tokenizer joins to the answer."""
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}"
        "{{ ' Answer: ' if message.role == 'user' else '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(ModelError) as caught:
        patch_chat_template(processor)
    assert "\n" not in (message := str(caught.value))
    assert message.count("Answer: ") == 1
    assert "['Ġ'], but ['Ġ['] where the answer '[1' follows" in message


def test_where_thinking_cannot_be_turned_off_the_prompt_skips_it(processor: Any) -> None:
    check = "{% if enable_thinking is defined and not enable_thinking %}{{ raise_exception('must think') }}{% endif %}"
    processor.chat_template = check + template(SWITCH)
    patch_chat_template(processor)
    check_prompts(processor)
    asked = text(processor, inference_conversation("x.png", "?"), add_generation_prompt=True)
    assert asked.endswith("<|im_start|>assistant\n" + EMPTY)


def test_the_error_of_a_template_is_reported_in_one_line(processor: Any) -> None:
    processor.chat_template = "{{ raise_exception('no\\nimages.') }}" + template("", thought="")
    with pytest.raises(ModelError, match="with their answer: no images; use the template that") as caught:
        patch_chat_template(processor)
    assert "\n" not in str(caught.value)
