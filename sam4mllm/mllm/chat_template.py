"""Patch chat templates: no thinking, an end token after each answer, and prompts equal to those in training.

Many published templates lack one of these. `patch_chat_template` changes the template itself when a processor is
loaded, so training and inference render conversations equally. Run folders and merged models are saved with the patched
template, so servers that load them render the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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

_CLOSED_BLOCK = re.compile(r"(</\w+>|<\w+\|>)$")
"""The end of a thinking block: `</think>`, or Gemma 4's `<channel|>`."""

_KEPT_THINKING = {"preserve_thinking": "true", "keep_past_thinking": "true", "clear_thinking": "false"}
"""Variables of templates, with the value that keeps the thinking block of earlier turns."""

_AFTER_LAST_QUESTION = re.compile(r"\bloop\.index0?\s*(?:>=?|==)\s*(?:\w+\.)?last_\w+")
_IN_LAST_TURN = re.compile(r"\bloop\.last\b")
"""Conditions on which templates render the last answer differently from earlier ones."""


def patch_chat_template(processor: Any) -> None:
    """Patch the chat template of `processor` where needed; a patched template is not changed again.

    1. A switch for thinking (on by default in Qwen3.5) is turned off.
    2. If no special token follows the assistant's text (LLaVA 1.5), the tokenizer's end token is appended to it;
       otherwise a model would not learn to stop.
    3. If the prompt's tokens are not a prefix of the training conversation's, one is replaced by the other, provided
       that one of them begins with the other, apart from white space. The base was made with the published prompt, so
       it replaces the text before answers in training where it differs in white space (FastVLM, LLaVA-OneVision) or by
       a closed thinking block (Gemma 4 31B). A prompt with which the model would not answer at once is replaced by the
       text in training (Qwen3-VL-Thinking).
    4. If earlier answers are rendered differently from the last one, because their thinking blocks are dropped
       (Qwen3.5, Qwen3.6, MiniCPM-V 4.6), the blocks are kept, where `renders_several_answers` then holds.

    Raises:
        ModelError: There is no end token, prompt and training text differ otherwise, or the template refuses a question
            with its answer.
    """
    from jinja2 import TemplateError

    try:
        _patch(processor)
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the chat template does not render an image and a question with their answer: {reason.rstrip('.')}; use "
            "the template that the model was published with, or patch it"
        ) from error


def _patch(processor: Any) -> None:
    _disable_thinking(processor)
    if turn_end(processor) is None:
        _close_answers(processor)
    _align_prompt(processor)
    _keep_earlier_turns(processor)


def _disable_thinking(processor: Any) -> None:
    """Turn the template's switch for thinking off, unless the template then raises an error."""
    from jinja2 import TemplateError

    published = processor.chat_template
    if "enable_thinking" not in published or _NO_THINKING in published:
        return
    processor.chat_template = _NO_THINKING + published
    try:
        _render_training(processor, "[]")
    except TemplateError:
        # Thinking cannot be turned off, so the prompt is made to skip it, as for templates without a switch.
        processor.chat_template = published


def renders_several_answers(processor: Any) -> bool:
    """Return whether each answer of a conversation follows its prompt in the rendered text, whatever turns follow."""
    from jinja2 import TemplateError

    conversation = training_conversation("", [("?", "[1"), ("?", "yes"), ("?", "No object found.")])
    try:
        text = _render(processor, conversation)
        for turn in range(1, len(conversation.turns), 2):
            before, after = (
                Conversation("", conversation.turns[:turn]),
                Conversation("", conversation.turns[: turn + 1]),
            )
            if not text.startswith(_render(processor, before, add_generation_prompt=True)):
                return False
            if not text.startswith(_render(processor, after)):
                return False
    except TemplateError:
        # The template raises an error about conversations of several answers.
        return False
    return True


def _keep_earlier_turns(processor: Any) -> None:
    """Keep the thinking block of earlier answers, where that makes `renders_several_answers` hold."""
    published, one_answer = processor.chat_template, _render_training(processor, "[]")
    if renders_several_answers(processor):
        return
    for candidate in _templates_with_equal_turns(published):
        processor.chat_template = candidate
        if renders_several_answers(processor) and _render_training(processor, "[]") == one_answer:
            return
    processor.chat_template = published


def _templates_with_equal_turns(template: str) -> Iterator[str]:
    """Yield variants of a template that may render earlier answers as they render the last one."""
    for variable, value in _KEPT_THINKING.items():
        if variable in template:
            yield f"{{%- set {variable} = {value} %}}{template}"
    all_after = _AFTER_LAST_QUESTION.sub("true", template)
    yield all_after
    yield _IN_LAST_TURN.sub("true", template)
    yield _IN_LAST_TURN.sub("true", all_after)


def turn_end(processor: Any) -> int | None:
    """Return the id of the special token that follows the assistant's text in the chat template; None without one."""
    after_answer = _render_training(processor, "[]").rpartition("[]")[2].strip()
    ids = processor.tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    return ids[0] if _are_special(processor, ids[:1]) else None


def around_answers(processor: Any) -> tuple[str, str]:
    """Return the text between the prompt and an answer, and between an answer and its end token.

    Both are white space, and empty in most templates.
    """
    prompt = _render(processor, inference_conversation("", "?"), add_generation_prompt=True)
    before, _, after = _render_training(processor, "[]").rpartition("[]")
    return before.removeprefix(prompt), after[: len(after) - len(after.lstrip())]


def _are_special(processor: Any, ids: list[int]) -> bool:
    """Return whether `ids` are special tokens, and at least one."""
    added_tokens = processor.tokenizer.added_tokens_decoder
    return bool(ids) and all(token in added_tokens and added_tokens[token].special for token in ids)


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
    in_inference, in_training = ("".join(text.split()) for text in (prompt, training_prefix))
    if in_inference == in_training and _is_token_prefix(processor, prompt):
        return
    closes_block = in_inference.startswith(in_training) and _CLOSED_BLOCK.search(in_inference.removeprefix(in_training))
    keeps_prompt = in_inference == in_training or closes_block
    if keeps_prompt and _replace_before_answers(processor, question, training_prefix, prompt):
        return
    if in_inference.startswith(in_training) or in_training.startswith(in_inference):
        # Most tokenizers join a space to the word after it, so the prompt may have to end before that space.
        for end in range(len(training_prefix), len(training_prefix.rstrip()) - 1, -1):
            candidate = training_prefix[:end]
            if candidate.startswith(question) and _is_token_prefix(processor, candidate):
                processor.chat_template = _with_prompt(processor.chat_template, candidate.removeprefix(question))
                return
    raise _prompt_error(processor, prompt.removeprefix(question), training_prefix.removeprefix(question), question)


def _replace_before_answers(processor: Any, question: str, training_prefix: str, prompt: str) -> bool:
    """Put the published prompt before every answer in training; return whether it is its prefix in tokens then.

    `training_prefix` and `prompt` both begin with `question`. The text to replace has to begin with a special token, as
    in ChatML, because no question or answer contains one.
    """
    published, before = processor.chat_template, training_prefix.removeprefix(question)
    asked = prompt.removeprefix(question)
    first = processor.tokenizer(before, add_special_tokens=False)["input_ids"][:1]
    if not (training_prefix.startswith(question) and prompt.startswith(question) and _are_special(processor, first)):
        return False
    talk = training_conversation("", [("?", "[1"), ("?", "no")])
    expected = _render(processor, talk).replace(before, asked)
    # Jinja removes one newline at the end of a template, which here is not the end any more.
    processor.chat_template = _with_prompt(
        f"{{% set rendered %}}{published.removesuffix(chr(10))}{{% endset %}}"
        f"{{{{ rendered | replace({before!r}, {asked!r}) }}}}",
        asked,
    )
    if _render(processor, talk) == expected and _is_token_prefix(processor, prompt):
        return True
    processor.chat_template = published
    return False


def _prompt_error(processor: Any, prompt: str, training_prefix: str, question: str) -> ModelError:
    """Return the error for a prompt that is not the text before an answer in training; both follow `question`."""
    if prompt != training_prefix:
        return ModelError(
            f"the chat template's prompt for an answer is {prompt!r}, but in training an answer follows "
            f"{training_prefix!r}, and no change of the prompt makes both equal in tokens; use another variant of the "
            "model, or patch its template so that both are equal"
        )
    tokenizer = processor.tokenizer
    prompt_ids, *rows = _prompt_and_training_ids(processor, question + prompt)
    answer, row = next(
        (answer, row) for answer, row in zip(_ANSWERS, rows, strict=True) if row[: len(prompt_ids)] != prompt_ids
    )
    start = next(
        (index for index, (a, b) in enumerate(zip(prompt_ids, row, strict=False)) if a != b),
        min(len(prompt_ids), len(row)),
    )
    asked, trained = (tokenizer.convert_ids_to_tokens(ids[start : len(prompt_ids)]) for ids in (prompt_ids, row))
    return ModelError(
        f"the chat template's prompt for an answer, which ends in {(question + prompt)[-20:]!r}, has the last tokens "
        f"{asked}, but {trained} where the answer {answer!r} follows it in training; end the prompt in the template "
        "with a special token or a newline"
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
    prompt_ids, *rows = _prompt_and_training_ids(processor, prompt)
    return all(row[: len(prompt_ids)] == prompt_ids for row in rows)


def _prompt_and_training_ids(processor: Any, prompt: str) -> list[list[int]]:
    """Return the token ids of `prompt`, then those of a training conversation for each of `_ANSWERS`."""
    texts = [prompt, *(_render_training(processor, answer) for answer in _ANSWERS)]
    return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _render_training(processor: Any, answer: str) -> str:
    return _render(processor, training_conversation("", [("?", answer)]))


def _render(processor: Any, conversation: Conversation, **settings: bool) -> str:
    return processor.apply_chat_template(conversation.messages(), tokenize=False, **settings)
