"""Whether a model still chats: short answers beside the true ones, as figures.

A question whose true answer is yes or no counts when the first "yes" or "no" of the answer is the true one. A question
with another short answer (five words at most) counts when the two are equal once case, punctuation and articles are
gone, as VQA's own evaluation has it. A longer answer cannot be judged so, and is only counted. This module knows texts
only: no models, no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sam4mllm.evaluate.report import text_table

LONGEST = 5
"""Words of the longest true answer that can be compared word by word."""

_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True, slots=True)
class ChatScores:
    """Figures of the answers to a chat file: fractions from 0 to 1, None where there is no such question.

    `yes_no` of the questions are answered by yes or no, `short` by a few words, `unjudged` by more.
    """

    yes_no: int
    yes_no_accuracy: float | None
    short: int
    exact_match: float | None
    unjudged: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_chat(pairs: Iterable[tuple[str, str]]) -> ChatScores:
    """Figures of (answer, true answer) pairs."""
    yes_no: list[bool] = []
    short: list[bool] = []
    unjudged = 0
    for answer, truth in pairs:
        said, meant = words(answer), words(truth)
        if meant in (["yes"], ["no"]):
            yes_no.append(next((word for word in said if word in ("yes", "no")), None) == meant[0])
        elif len(meant) <= LONGEST:
            short.append(said == meant)
        else:
            unjudged += 1
    return ChatScores(
        yes_no=len(yes_no),
        yes_no_accuracy=sum(yes_no) / len(yes_no) if yes_no else None,
        short=len(short),
        exact_match=sum(short) / len(short) if short else None,
        unjudged=unjudged,
    )


def words(answer: str) -> list[str]:
    """The words of an answer: lower case, no punctuation but points within numbers, no articles."""
    return [word for word in re.findall(r"\w+(?:[.']\w+)*", answer.lower()) if word not in _ARTICLES]


def chat_record(file: Path, scores: Mapping[str, ChatScores]) -> dict[str, Any]:
    """The figures of a chat file and each model's answers, as results.json holds them."""
    return {"file": str(file)} | {name: each.to_json() for name, each in scores.items()}


def chat_report(scores: Mapping[str, ChatScores]) -> str:
    """A table with a row for each model, in percent, under the numbers of questions."""
    first = next(iter(scores.values()))
    counts = f"{first.yes_no} yes/no questions, {first.short} with a short answer, {first.unjudged} not judged"
    rows = [
        [
            name,
            *("-" if value is None else f"{100 * value:.1f}" for value in (each.yes_no_accuracy, each.exact_match)),
            "",
        ]
        for name, each in scores.items()
    ]
    return "\n".join([counts, "", *text_table(["", "yes/no", "exact match", ""], rows)]) + "\n"
