"""ScriptedEngine: an engine that replays answers. For tests and dry runs, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sam4mllm.mllm.engine import Reply
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion

Scripted: TypeAlias = str | Reply
Weights: TypeAlias = Callable[[Conversation, YesNoQuestion], Sequence[YesNo]]
Script: TypeAlias = Sequence[Scripted] | Mapping[str, Scripted] | Callable[[Conversation], Scripted]


class ScriptedEngine:
    """Replays `answers`: a list in the order asked, a mapping from a part of the question, or a function.

    Of a mapping's keys that the last turn holds, the longest decides, so "red ring" wins over "ring". An answer given
    as text is a finished reply. `asked` keeps every conversation in the order it came.

    What yes and no weigh is said by `weights`, a function of the conversation before a question and the question, which
    gives one for each of its answers.

    Raises:
        LookupError: (when asked) the list is at its end, or no key of the mapping is part of the question; there are no
            `weights`.
    """

    def __init__(self, answers: Script, weights: Weights | None = None) -> None:
        self._answers = answers
        self._weights = weights
        self.asked: list[Conversation] = []
        self.inquiries: list[YesNoQuery] = []

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """The scripted replies as they are: `max_new_tokens` cuts nothing."""
        replies = []
        for conversation in conversations:
            answer = self._answer(conversation)
            replies.append(Reply(answer) if isinstance(answer, str) else answer)
            self.asked.append(conversation)
        return replies

    def score_answers(self, inquiries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """The scripted weights; `inquiries` keeps all inquiries in the order they came."""
        self.inquiries += inquiries
        if self._weights is None:
            raise LookupError("the script does not say what yes and no weigh")
        return [
            [list(self._weights(inquiry.history, question)) for question in inquiry.questions] for inquiry in inquiries
        ]

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
