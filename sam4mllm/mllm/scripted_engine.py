"""ScriptedEngine: an engine that replays given answers, for tests and dry runs without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sam4mllm.mllm.engine import Reply, Sampling
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion

ScriptedAnswer: TypeAlias = str | Reply
Script: TypeAlias = Sequence[ScriptedAnswer] | Mapping[str, ScriptedAnswer] | Callable[[Conversation], ScriptedAnswer]
Probabilities: TypeAlias = Callable[[Conversation, YesNoQuestion], Sequence[YesNo]]


class ScriptedEngine:
    """An engine that replays `answers`: a list in the order of the questions, a mapping from a part of a question, or a
    function of the conversation.

    If several keys of a mapping are part of the last turn, the longest is used, so "red ring" wins over "ring". An
    answer given as text is a finished reply. `asked` records every conversation, and `queries` every yes/no query, in
    the order in which they came.

    `probabilities` is a function of the conversation before a yes/no question and of the question; it returns the
    probabilities of yes and no for each of the question's answers.

    Raises:
        LookupError: (when asked) The list is used up, no key of the mapping is part of the question, or a yes/no
            question is asked without `probabilities`.
    """

    def __init__(self, answers: Script, probabilities: Probabilities | None = None) -> None:
        self._answers = answers
        self._probabilities = probabilities
        self.asked: list[Conversation] = []
        self.queries: list[YesNoQuery] = []

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the scripted replies; `max_new_tokens` does not cut them off."""
        replies = []
        for conversation in conversations:
            answer = self._answer(conversation)
            replies.append(Reply(answer) if isinstance(answer, str) else answer)
            self.asked.append(conversation)
        return replies

    def generate_located(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the scripted replies, with the locations that the script gives them."""
        return self.generate(conversations, max_new_tokens)

    def generate_samples(
        self, conversations: Sequence[Conversation], max_new_tokens: int, sampling: Sampling
    ) -> list[list[Reply]]:
        """Return `sampling.samples` scripted replies to each conversation, as if each were asked so many times."""
        count = sampling.samples
        replies = self.generate([each for each in conversations for _ in range(count)], max_new_tokens)
        return [replies[start : start + count] for start in range(0, len(replies), count)]

    def score_answers(self, queries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """Return the scripted probabilities."""
        self.queries += queries
        if self._probabilities is None:
            raise LookupError("the script has no probabilities of yes and no; give ScriptedEngine a function for them")
        return [
            [list(self._probabilities(query.history, question)) for question in query.questions] for query in queries
        ]

    def _answer(self, conversation: Conversation) -> ScriptedAnswer:
        if callable(self._answers):
            return self._answers(conversation)
        question = conversation.turns[-1].text
        if isinstance(self._answers, Mapping):
            keys = [key for key in self._answers if key in question]
            if not keys:
                raise LookupError(f"no scripted answer for {question!r}; the script has {sorted(self._answers)}")
            return self._answers[max(keys, key=len)]
        if len(self.asked) >= len(self._answers):
            raise LookupError(f"the script has {len(self._answers)} answers and was asked once more: {question!r}")
        return self._answers[len(self.asked)]
