"""Patch chat templates: no thinking, an end token after each answer, and prompts equal to those in training.

Many published templates lack one of the three. `patch_chat_template` changes the template itself when a processor is
loaded, so training and inference render conversations equally. Run folders and merged models are saved with the patched
template, so servers that load them render the same.
"""

from __future__ import annotations

from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.prompts.conversation import Conversation, inference_conversation, training_conversation

_ANSWERS = ("[1", "<box>[[1", "No object found.", "yes", "no")
"""Beginnings of answers: none of them may change the tokens of the prompt before it."""

_NO_THINKING = "{%- set enable_thinking = false %}"

_CLOSED_ANSWERS = (
    "{%- set closed = namespace(messages=[]) %}{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{%- set text = message['content'] if message['content'] is string else message['content'][0]['text'] %}"
    "{%- set message = dict(message, content=[{'type': 'text', 'text': text + eos_token}]) %}{%- endif %}"
    "{%- set closed.messages = closed.messages + [message] %}{%- endfor %}{%- set messages = closed.messages %}"
)
"""Prefix of a template that appends the tokenizer's end token to each of the assistant's texts."""


def patch_chat_template(processor: Any) -> None:
    """Patch the chat template of `processor` where needed; a patched template is not changed again.

    1. A switch for thinking (on by default in Qwen3.5) is turned off.
    2. If no special token follows the assistant's text (LLaVA 1.5), the tokenizer's end token is appended to it;
       otherwise a model would not learn to stop.
    3. If the prompt's tokens are not a prefix of the training conversation's, and the texts differ in white space only
       (FastVLM, LLaVA-OneVision), the prompt is replaced by the text before an answer in training.

    Raises:
        ModelError: There is no end token, or prompt and training text differ otherwise, as with a model that always
            thinks first.
    """
    if "enable_thinking" in processor.chat_template and _NO_THINKING not in processor.chat_template:
        processor.chat_template = _NO_THINKING + processor.chat_template
    if turn_end(processor) is None:
        _close_answers(processor)
    _align_prompt(processor)


def turn_end(processor: Any) -> int | None:
    """Return the id of the special token that follows the assistant's text in the chat template; None without one."""
    tokenizer = processor.tokenizer
    after_answer = _render_training(processor, "[]").rpartition("[]")[2].strip()
    ids = tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    added_tokens = tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in added_tokens and added_tokens[ids[0]].special else None


def _close_answers(processor: Any) -> None:
    """Append the tokenizer's end token to each answer; a ModelError if there is none."""
    if processor.tokenizer.eos_token is not None:
        processor.chat_template = _CLOSED_ANSWERS + processor.chat_template
    if turn_end(processor) is None:
        raise ModelError(
            "the chat template has no special token after an answer, and the tokenizer has no end token to add, so a "
            "model would not learn to stop; put a special token after the assistant's text in the template"
        )


def _align_prompt(processor: Any) -> None:
    """Make the tokens of the prompt a prefix of the tokens of the training conversation."""
    question = _render(processor, inference_conversation("", "?"))
    prompt = _render(processor, inference_conversation("", "?"), add_generation_prompt=True)
    training_prefix = _render_training(processor, "[]").rpartition("[]")[0]
    if "".join(prompt.split()) == "".join(training_prefix.split()):
        # Most tokenizers join a space to the word after it, so the prompt may have to end before that space.
        ends = range(len(training_prefix), len(training_prefix.rstrip()) - 1, -1)
        for candidate in (prompt, *(training_prefix[:end] for end in ends)):
            if candidate.startswith(question) and _is_token_prefix(processor, candidate):
                if candidate != prompt:
                    processor.chat_template = _with_prompt(processor.chat_template, candidate.removeprefix(question))
                return
    raise ModelError(
        f"the chat template's prompt for an answer is {prompt.removeprefix(question)!r}, but in training an answer "
        f"follows {training_prefix.removeprefix(question)!r}; use the variant of the model that answers without "
        "thinking, or patch its template so that both are equal"
    )


def _with_prompt(template: str, prompt: str) -> str:
    """Return the template with another generation prompt."""
    # Jinja removes one newline at the end of a template, which here is not the end any more.
    return (
        "{%- set asks, add_generation_prompt = add_generation_prompt, false %}"
        + template.removesuffix("\n")
        + f"{{% if asks %}}{{{{ {prompt!r} }}}}{{% endif %}}"
    )


def _is_token_prefix(processor: Any, prompt: str) -> bool:
    """Return whether the tokens of `prompt` are a prefix of a training conversation's, for every kind of answer."""
    texts = [prompt, *(_render_training(processor, answer) for answer in _ANSWERS)]
    prompt_ids, *rows = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return all(row[: len(prompt_ids)] == prompt_ids for row in rows)


def _render_training(processor: Any, answer: str) -> str:
    return _render(processor, training_conversation("", [("?", answer)]))


def _render(processor: Any, conversation: Conversation, **settings: bool) -> str:
    return processor.apply_chat_template(conversation.messages(), tokenize=False, **settings)
