"""ScriptedEngine: an engine that replays answers. For tests and dry runs, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sam4mllm.chat.conversation import Conversation
from sam4mllm.mllm.generate import Reply

Scripted: TypeAlias = str | Reply
Script: TypeAlias = Sequence[Scripted] | Mapping[str, Scripted] | Callable[[Conversation], Scripted]


class ScriptedEngine:
    """Replays `answers`: a list in the order asked, a mapping from a part of the question, or a function.

    Of a mapping's keys that the last turn holds, the longest decides, so "red ring" wins over "ring". An answer given
    as text is a finished reply. `asked` keeps every conversation in the order it came.

    Raises:
        LookupError: (when asked) the list is at its end, or no key of the mapping is part of the question.
    """

    def __init__(self, answers: Script) -> None:
        self._answers = answers
        self.asked: list[Conversation] = []

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """The scripted replies as they are: `max_new_tokens` cuts nothing."""
        replies = []
        for conversation in conversations:
            answer = self._answer(conversation)
            replies.append(Reply(answer) if isinstance(answer, str) else answer)
            self.asked.append(conversation)
        return replies

    def _answer(self, conversation: Conversation) -> Scripted:
        if callable(self._answers):
            return self._answers(conversation)
        question = conversation.turns[-1].text
        if isinstance(self._answers, Mapping):
            keys = [key for key in self._answers if key in question]
            if not keys:
                raise LookupError(f"no scripted answer for {question!r}; the script knows {sorted(self._answers)}")
            return self._answers[max(keys, key=len)]
        if len(self.asked) >= len(self._answers):
            raise LookupError(f"the script has {len(self._answers)} answers and was asked once more: {question!r}")
        return self._answers[len(self.asked)]
