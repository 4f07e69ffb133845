"""Asks the questions of a chat file, of the tuned model and of its base, to see what tuning left of the chat.

Every question is asked after the true turns before it. This module knows no masks and judges no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.lora import adapter_disabled, has_adapter
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, teaching
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar

MAX_NEW_TOKENS = 64
"""An answer that is longer is no short one."""
AT_ONCE = 64
"""Chats that one process takes at a time."""


def ask_chat(
    engine: Engine, dialogues: Sequence[Dialogue], processes: DistributedContext = SINGLE_PROCESS
) -> dict[str, list[tuple[str, str]]]:
    """(answer, true answer) pairs of the engine's model as "tuned" and, its adapter switched off, as "base".

    A model without adapter has the one row "base", and an engine whose model is not at hand the one row "model".
    Several processes ask a part each, and all get all pairs.

    Raises:
        DataError: an image cannot be read.
    """
    if not isinstance(engine, TransformersEngine):
        return {"model": _pairs(engine, dialogues, "chat", processes)}
    if not has_adapter(engine.mllm):
        return {"base": _pairs(engine, dialogues, "chat", processes)}
    tuned = _pairs(engine, dialogues, "chat, tuned", processes)
    with adapter_disabled(engine.mllm):
        return {"tuned": tuned, "base": _pairs(engine, dialogues, "chat, base", processes)}


def _pairs(
    engine: Engine, dialogues: Sequence[Dialogue], name: str, processes: DistributedContext
) -> list[tuple[str, str]]:
    found: dict[int, list[tuple[str, str]]] = {}
    with bar(name, len(dialogues), unit="chats", shown=processes.is_main) as advance:
        advance = processes.aggregate_progress(advance)
        for start in processes.distribute(range(0, len(dialogues), AT_ONCE)):
            part = dialogues[start : start + AT_ONCE]
            found[start] = _answered(engine, part)
            advance(len(part))
        everything = processes.gather(list(found.items()))
    ordered = sorted((start, pairs) for each in everything for start, pairs in each)
    return [(answer, truth) for _, pairs in ordered for answer, truth in pairs]


def _answered(engine: Engine, dialogues: Sequence[Dialogue]) -> list[tuple[str, str]]:
    asked: list[Conversation] = []
    truths: list[str] = []
    for dialogue in dialogues:
        turns = teaching(dialogue.image, list(dialogue.exchanges)).turns
        asked += [Conversation(dialogue.image, turns[: 2 * index + 1]) for index in range(len(dialogue.exchanges))]
        truths += [answer for _, answer in dialogue.exchanges]
    replies = engine.generate(asked, MAX_NEW_TOKENS)
    return [(reply.text, truth) for reply, truth in zip(replies, truths, strict=True)]
