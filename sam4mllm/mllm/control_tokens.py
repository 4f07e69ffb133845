"""Control tokens in the text of a conversation: they would end its turn, open another, or count as an image.

A tokenizer turns the text of such a token into the token itself, wherever it is. Texts that hold one are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sam4mllm.errors import DataError
from sam4mllm.prompts.conversation import LOCATION_TOKEN, training_conversation

_DELIMITERS = ("<", "[", "\uff5c")

_COMMON = re.compile(
    r"<\|(?!(?:object_ref|box|quad|point)_(?:start|end)\|)[^<>|\s]{1,40}\|?>"
    r"|<[^<>|\s]{1,40}\|>"
    r"|<\uff5c[^<>\uff5c]{1,40}\uff5c>"
    r"|</?(?:s|bos|eos|pad|unk|image|img|video|audio|think|tool_call|tool_response|IMG_CONTEXT|image_soft_token"
    r"|start_of_image|end_of_image|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT)\]"
)
"""Control tokens of common families, for models whose tokenizer is not known here; tokens of coordinates are left out.
"""

_PROCESSOR_TOKENS = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token")
"""Tokens that are properties of some classes of processors, and attributes of others."""

_Known = tuple[str, frozenset[str]]
_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def control_tokens(processor: Any) -> frozenset[str]:
    """Return the control tokens of a processor: images' and named special tokens, and those of its chat template.

    Other special tokens, such as those of coordinates, are not control tokens, because answers may hold them.
    """
    template = str(processor.chat_template)
    if processor not in _known or _known[processor][0] != template:
        _known[processor] = template, _control_tokens(processor, template)
    return _known[processor][1]


def special_tokens(processor: Any) -> frozenset[str]:
    """Return the control tokens, all other special tokens and the location token: none of them belongs in a phrase."""
    added = processor.tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special and _is_delimited(token.content)}
    location = {token.content for token in added if token.content == LOCATION_TOKEN}
    return control_tokens(processor) | special | location


def _control_tokens(processor: Any, template: str) -> frozenset[str]:
    tokenizer = processor.tokenizer
    named = [value for value in tokenizer.special_tokens_map.values() if isinstance(value, str)]
    names = {*_PROCESSOR_TOKENS, *(name for name in vars(processor) if name.endswith("_token"))}
    of_processor = [getattr(token, "content", token) for token in (getattr(processor, name, None) for name in names)]
    in_template = [
        token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip() in template
    ]
    texts = [*named, *in_template, *(token for token in of_processor if isinstance(token, str))]
    tokens = {text for text in texts if _is_delimited(text)}
    return frozenset(tokens | _role_labels(processor, tokens))


def _is_delimited(text: str) -> bool:
    """Return whether a text has the form of a token; some padding tokens are a word or an exclamation mark."""
    return len(text) > 2 and text.strip().startswith(_DELIMITERS)


def _role_labels(processor: Any, tokens: Collection[str]) -> set[str]:
    """Return the text between question and answer if no control token is in it, as "ASSISTANT:" of LLaVA 1.5."""
    question, answer = "question1", "answer1"
    text = processor.apply_chat_template(training_conversation("", [(question, answer)]).messages(), tokenize=False)
    between = text.partition(question)[2].partition(answer)[0].strip()
    return {between} if between and not any(token in between for token in tokens) else set()


def find_token(text: str, tokens: Iterable[str]) -> str | None:
    """Return the first of `tokens` in alphabetical order that `text` holds; None if it holds none."""
    return min((token for token in tokens if token in text), default=None)


def check_messages(processor: Any, messages: Sequence[list[dict[str, Any]]]) -> None:
    """Check that no text of the conversations holds a control token of the processor.

    Raises:
        DataError: The first text that does, and the token.
    """
    tokens = control_tokens(processor)
    for turn in (turn for chat in messages for turn in chat):
        for part in turn["content"]:
            if part["type"] == "text" and (token := find_token(part["text"], tokens)):
                raise control_token_error(part["text"], token)


def check_unknown_tokenizer(text: str) -> None:
    """Check that a text holds no control token of common families, for a model whose tokenizer is not known here.

    Raises:
        DataError: It holds one.
    """
    if found := _COMMON.search(text):
        raise control_token_error(text, found[0])


def control_token_error(text: str, token: str, what: str = "the text") -> DataError:
    """Return the error for a text that holds a token; `what` names the text."""
    start = max(0, text.index(token) - 40)
    excerpt = text[start : start + 80 + len(token)]
    return DataError(
        f"{what} {excerpt!r} holds {token!r}, which the model reads as a control token (the end of a turn, an image, "
        "...) and not as text; reword it",
        "phrase",
    )
