"""Chat questions for the fine-tuned model and its base, to measure how much chat ability fine-tuning preserves.

Each question of a chat file follows the annotated turns before it. A question whose annotated answer is yes or
no is correct if the first "yes" or "no" of the model's answer is the annotated one. A question with another short
answer (at most five words) is correct if the two answers are equal after VQA's normalization: lower case, without
punctuation and articles. Longer answers are counted and not scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.evaluation.report import text_table
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.lora import adapter_disabled, has_adapter
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, training_conversation
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar

MAX_NEW_TOKENS = 64
"""The length limit of a chat answer; longer ones are not short answers."""
CHATS_PER_PART = 64
"""Chats that one process takes at a time."""
MAX_WORDS = 5
"""Words of the longest annotated answer that is compared word by word."""

_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True, slots=True)
class ChatScores:
    """Accuracies on the questions of a chat file, as fractions from 0 to 1; None if there is no such question.

    `yes_no` questions are answered by yes or no, `short` ones by a few words, and `unjudged` ones by more.
    """

    yes_no: int
    yes_no_accuracy: float | None
    short: int
    exact_match: float | None
    unjudged: int

    def to_json(self) -> dict[str, Any]:
        """Return the model's entry in results.json."""
        return asdict(self)


def ask_chat(
    engine: Engine, dialogues: Sequence[Dialogue], processes: DistributedContext = SINGLE_PROCESS
) -> dict[str, list[tuple[str, str]]]:
    """Return the (answer, annotated answer) pairs of each model.

    The keys are "tuned" and, with the adapter disabled, "base"; "tuned" alone for a merged adapter, which cannot be
    disabled; "base" alone for a model without adapter; "model" for an engine whose model runs in another process.
    Several processes share the questions, and all of them get all pairs.

    Raises:
        DataError: An image cannot be read.
    """
    if not isinstance(engine, TransformersEngine):
        return {"model": _ask_all(engine, dialogues, "chat", processes)}
    if not has_adapter(engine.mllm):
        name = "tuned" if engine.mllm.adapter_merged else "base"
        return {name: _ask_all(engine, dialogues, "chat", processes)}
    tuned = _ask_all(engine, dialogues, "chat, tuned", processes)
    with adapter_disabled(engine.mllm):
        return {"tuned": tuned, "base": _ask_all(engine, dialogues, "chat, base", processes)}


def score_chat(pairs: Iterable[tuple[str, str]]) -> ChatScores:
    """Score (answer, annotated answer) pairs."""
    yes_no: list[bool] = []
    short: list[bool] = []
    unscored = 0
    for answer, truth in pairs:
        answer_words, truth_words = normalized_words(answer), normalized_words(truth)
        if truth_words in (["yes"], ["no"]):
            first = next((word for word in answer_words if word in ("yes", "no")), None)
            yes_no.append(first == truth_words[0])
        elif len(truth_words) <= MAX_WORDS:
            short.append(answer_words == truth_words)
        else:
            unscored += 1
    return ChatScores(
        yes_no=len(yes_no),
        yes_no_accuracy=sum(yes_no) / len(yes_no) if yes_no else None,
        short=len(short),
        exact_match=sum(short) / len(short) if short else None,
        unjudged=unscored,
    )


def normalized_words(answer: str) -> list[str]:
    """Return the words of an answer in lower case, without articles and punctuation except points within numbers."""
    return [word for word in re.findall(r"\w+(?:[.']\w+)*", answer.lower()) if word not in _ARTICLES]


def chat_record(file: str | Path, scores: Mapping[str, ChatScores]) -> dict[str, Any]:
    """Return the entry of a chat file in results.json, with the scores of each model."""
    return {"file": str(file)} | {name: each.to_json() for name, each in scores.items()}


def chat_report(scores: Mapping[str, ChatScores]) -> str:
    """Return a table with a row per model, in percent, below the numbers of questions."""
    first = next(iter(scores.values()))
    counts = f"{first.yes_no} yes/no questions, {first.short} with a short answer, {first.unjudged} not scored"
    rows = []
    for name, each in scores.items():
        accuracies = (each.yes_no_accuracy, each.exact_match)
        rows.append([name, *("-" if value is None else f"{100 * value:.1f}" for value in accuracies), ""])
    return "\n".join([counts, "", *text_table(["", "yes/no", "exact match", ""], rows)]) + "\n"


def _ask_all(
    engine: Engine, dialogues: Sequence[Dialogue], title: str, processes: DistributedContext
) -> list[tuple[str, str]]:
    parts: dict[int, list[tuple[str, str]]] = {}
    with bar(title, len(dialogues), unit="chats", shown=processes.is_main) as advance:
        advance = processes.aggregate_progress(advance)
        for start in processes.distribute(range(0, len(dialogues), CHATS_PER_PART)):
            part = dialogues[start : start + CHATS_PER_PART]
            parts[start] = _ask(engine, part)
            advance(len(part))
        gathered = processes.gather(list(parts.items()))
    ordered = sorted((start, pairs) for each in gathered for start, pairs in each)
    return [(answer, truth) for _, pairs in ordered for answer, truth in pairs]


def _ask(engine: Engine, dialogues: Sequence[Dialogue]) -> list[tuple[str, str]]:
    conversations: list[Conversation] = []
    truths: list[str] = []
    for dialogue in dialogues:
        turns = training_conversation(dialogue.image, list(dialogue.exchanges)).turns
        for index, (_, truth) in enumerate(dialogue.exchanges):
            conversations.append(Conversation(dialogue.image, turns[: 2 * index + 1]))
            truths.append(truth)
    replies = engine.generate(conversations, MAX_NEW_TOKENS)
    return [(reply.text, truth) for reply, truth in zip(replies, truths, strict=True)]
