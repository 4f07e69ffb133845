"""The chat template as it is used here: it answers at once, closes every answer, and asks as it teaches.

A published template may do none of that. It is mended itself, when a processor is loaded, so everything that renders a
conversation does the same, and so do run folders, merged models and the servers that take them. This module knows no
weights and no images.
"""

from __future__ import annotations

from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.prompts.conversation import Conversation, asking, teaching

_ANSWERS = ("[1", "<box>[[1", "No object found.", "yes", "no")
"""How answers begin: what a prompt is followed by must not change its own tokens."""

_NOT_THINKING = "{%- set enable_thinking = false %}"

_CLOSED = (
    "{%- set closed = namespace(messages=[]) %}{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{%- set text = message['content'] if message['content'] is string else message['content'][0]['text'] %}"
    "{%- set message = dict(message, content=[{'type': 'text', 'text': text + eos_token}]) %}{%- endif %}"
    "{%- set closed.messages = closed.messages + [message] %}{%- endfor %}{%- set messages = closed.messages %}"
)
"""Put before a template, it ends each of the assistant's texts by the tokenizer's end token."""


def patch_chat_template(processor: Any) -> None:
    """Change the template of `processor` where it needs it; what is mended already stays as it is.

    - A switch for thinking (Qwen3.5's is on) is turned off.
    - Where no special token follows the assistant's words (LLaVA 1.5), the tokenizer's end token does, or a model would
      not learn to stop.
    - Where the tokens of the prompt are not those that a taught answer follows, and only white space is between them
      (FastVLM, LLaVA-OneVision), the prompt becomes what is taught.

    Raises:
        ModelError: the answers cannot be closed; prompt and taught answer differ otherwise, as those of a model that
            always thinks first.
    """
    template = processor.chat_template
    if "enable_thinking" in template and _NOT_THINKING not in template:
        processor.chat_template = _NOT_THINKING + template
    if turn_end(processor) is None:
        _close_answers(processor)
    _ask_as_taught(processor)


def turn_end(processor: Any) -> int | None:
    """The special token that follows the assistant's words in the chat template, if one does."""
    tokenizer = processor.tokenizer
    behind = tokenizer(_taught(processor, "[]").rpartition("[]")[2].strip(), add_special_tokens=False)["input_ids"]
    known = tokenizer.added_tokens_decoder
    return behind[0] if behind and behind[0] in known and known[behind[0]].special else None


def _close_answers(processor: Any) -> None:
    if processor.tokenizer.eos_token is not None:
        processor.chat_template = _CLOSED + processor.chat_template
    if turn_end(processor) is None:
        raise ModelError(
            "the chat template ends an answer by no special token, and the tokenizer has no end token to put there, so "
            "a model would not learn to stop; put one behind the assistant's text in the template"
        )


def _ask_as_taught(processor: Any) -> None:
    question = _rendered(processor, asking("", "?"))
    asked = _rendered(processor, asking("", "?"), add_generation_prompt=True)
    taught = _taught(processor, "[]").rpartition("[]")[0]
    if "".join(asked.split()) == "".join(taught.split()):
        # Most tokenizers join a space to the word behind it, so the prompt may have to end before it.
        ends = range(len(taught), len(taught.rstrip()) - 1, -1)
        for text in (asked, *(taught[:end] for end in ends)):
            if text.startswith(question) and _begins_answers(processor, text):
                if text != asked:
                    processor.chat_template = _with_prompt(processor.chat_template, text.removeprefix(question))
                return
    raise ModelError(
        f"the chat template asks by {asked.removeprefix(question)!r} for an answer that is taught behind "
        f"{taught.removeprefix(question)!r}, so what is trained would not be what is asked; take the variant of the "
        "model that answers at once, or mend its template"
    )


def _with_prompt(template: str, prompt: str) -> str:
    """The template with another prompt for the answer."""
    # Jinja takes one newline off the end of a template, which now is no end.
    return (
        "{%- set asks, add_generation_prompt = add_generation_prompt, false %}"
        + template.removesuffix("\n")
        + f"{{% if asks %}}{{{{ {prompt!r} }}}}{{% endif %}}"
    )


def _begins_answers(processor: Any, asked: str) -> bool:
    """Whether the tokens of `asked` are the first of each taught conversation that goes on with an answer."""
    texts = [asked, *(_taught(processor, answer) for answer in _ANSWERS)]
    first, *rows = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return all(row[: len(first)] == first for row in rows)


def _taught(processor: Any, answer: str) -> str:
    return _rendered(processor, teaching("", [("?", answer)]))


def _rendered(processor: Any, conversation: Conversation, **settings: bool) -> str:
    return processor.apply_chat_template(conversation.messages(), tokenize=False, **settings)
