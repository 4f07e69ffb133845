"""Yes/no probabilities for PQPP's round two, read from the model's output distribution, many questions in one batch.

The conversation before the questions (image, boxes) is computed once; its cache is shared by all of them. In a
question about several points each answer depends on the answers before it, so decoding would take one pass per
answer. Instead, all answers are read from one pass over guessed answers, and guessed again until no guess changes
(Jacobi decoding; Santilli et al. 2023, arXiv 2305.10427): the fixed point equals greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.shared_prefix import (
    PrefixStore,
    Prompt,
    SharedPrefixes,
    common_length,
    compute_with_store,
    token_ids,
)
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.utils.memory import DeviceBatch


@dataclass(frozen=True, slots=True)
class _AnswerToken:
    """The token that is yes or no in a row: its position, and its id for either answer."""

    position: int
    yes: int
    no: int


@dataclass(slots=True)
class _Row:
    """One question while it is scored: its guessed answers, their probabilities, and the tokens of the next pass.

    `history` is the index of the history, in its batch, that the question follows.
    """

    history: int
    conversation: Conversation
    guess: list[bool]
    probabilities: list[YesNo] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answer_tokens: list[_AnswerToken] = field(default_factory=list)


def score_answers(
    mllm: Mllm, queries: Sequence[YesNoQuery], batch: DeviceBatch, store: PrefixStore | None = None
) -> list[list[list[YesNo]]]:
    """Return, for each query and each of its questions, the probabilities of each of its answers.

    Yes and no are the first tokens that differ between the two answers in this model's rendered chat. An answer is
    conditioned on the model's own answers before it in the same question: yes if it is more probable than no. Images
    whose prefix is in `store` are not computed again.

    Raises:
        DataError: An image cannot be read.
        ModelError: The model's chat template or tokenizer does not separate the answers.
    """
    import torch

    with torch.no_grad():
        scored = batch.map(
            queries, partial(compute_with_store, store, lambda part: _score_batch(mllm, part, batch, store))
        )
        return [probabilities for part in scored for probabilities in part]


def _score_batch(
    mllm: Mllm, queries: Sequence[YesNoQuery], batch: DeviceBatch, store: PrefixStore | None
) -> list[list[list[YesNo]]]:
    """Score queries whose histories are one batch; their questions are scored `batch.size` at a time."""
    # 1. One row per question; the first guess is "no" to everything.
    with_questions = [query for query in queries if query.questions]
    rows = [
        _Row(index, _with_question(query.history, question), [False] * question.count)
        for index, query in enumerate(with_questions)
        for question in query.questions
    ]
    if rows:
        for row in rows:
            _tokenize_guess(mllm, row)
        # 2. The histories are computed once.
        histories = _Histories(mllm, [query.history for query in with_questions], rows, store)
        # 3. Jacobi iteration: score all answers given the guess, guess the more probable ones, and repeat with those
        #    rows whose guess has changed. Rows of similar length share a pass, so little is padded.
        #    An answer is final once those before it are, so there are at most as many passes as a list has answers. The
        #    limit matters for quantized weights, whose rounding could let a later guess change an earlier answer.
        pending = sorted(rows, key=lambda row: (len(row.tokens), row.history))
        for _ in range(max(len(row.guess) for row in rows)):
            for _ in batch.map(pending, histories.score):
                pass
            pending = [row for row in pending if _update_guess(mllm, row)]
            if not pending:
                break
    # 4. The rows are grouped by query again.
    probabilities = iter([row.probabilities for row in rows])
    return [[next(probabilities) for _ in query.questions] for query in queries]


def _update_guess(mllm: Mllm, row: _Row) -> bool:
    """Guess the more probable answers; return whether a guess changed that a later answer is conditioned on."""
    more_probable = [probability.yes > probability.no for probability in row.probabilities]
    changed = more_probable[:-1] != row.guess[:-1]
    row.guess = more_probable
    if changed:
        _tokenize_guess(mllm, row)
    return changed


def _with_question(history: Conversation, question: YesNoQuestion) -> Conversation:
    return Conversation(history.image, (*history.turns, Turn("user", question.text)))


def _with_answers(conversation: Conversation, answers: Sequence[bool]) -> Conversation:
    return Conversation(conversation.image, (*conversation.turns, Turn("assistant", write_answers(answers))))


def _tokenize_guess(mllm: Mllm, row: _Row) -> None:
    """Set the row's tokens, up to the last answer, and the position and ids of each answer's token.

    The answers are rendered in an assistant's turn, as in training: a template may put text between the prompt and an
    answer, and a tokenizer may join a space to the word after it.

    Raises:
        ModelError: The tokens of an answer depend on the answers after it.
    """
    # 1. For each answer, two texts that end with it: yes or no after the guessed answers before it.
    variants = [
        _with_answers(row.conversation, [*row.guess[:count], answer])
        for count in range(len(row.guess))
        for answer in (True, False)
    ]
    ids = token_ids(mllm, variants)
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    # 2. The answer's token is the first one in which the two texts differ.
    positions = [common_length(yes, no) for yes, no in pairs]
    row.tokens = pairs[-1][0][: positions[-1]]
    row.answer_tokens = [
        _AnswerToken(position, yes[position], no[position])
        for position, (yes, no) in zip(positions, pairs, strict=True)
    ]
    # 3. All answers are read from one pass over the longest text, so the shorter ones must be parts of it.
    if any(yes[:position] != row.tokens[:position] for position, (yes, _) in zip(positions, pairs, strict=True)):
        raise ModelError(
            f"the tokenizer does not write {write_answers([True, False])!r} answer by answer, so the answers "
            "cannot be scored; ask about one point at a time (method.form=single)"
        )


class _Histories:
    """The computed histories of a batch of queries, shared by the rows that follow them."""

    def __init__(
        self, mllm: Mllm, histories: Sequence[Conversation], rows: Sequence[_Row], store: PrefixStore | None
    ) -> None:
        # 1. The part of each history that it shares with the text of all its questions: where history and question
        #    meet, the tokens may differ.
        plain = token_ids(mllm, histories)
        self._shared_lengths = [
            min(common_length(ids, row.tokens) for row in rows if row.history == index)
            for index, ids in enumerate(plain)
        ]
        # 2. Histories about the same image, or whose image is in the store, share its computation.
        prompts = [
            Prompt(history, ids, length, asks=False)
            for history, ids, length in zip(histories, plain, self._shared_lengths, strict=True)
        ]
        self._rows = SharedPrefixes(mllm, prompts, store).rows(prompts)

    def score(self, rows: Sequence[_Row]) -> None:
        """Run one pass over the rows and set the probabilities of their answers."""
        # 1. The rows' tokens after the computed part. The logits that predict an answer's token are those at the token
        #    before it.
        tails = [row.tokens[self._shared_lengths[row.history] :] for row in rows]
        predictors = [
            [token.position - 1 - self._shared_lengths[row.history] for token in row.answer_tokens] for row in rows
        ]
        columns = sorted({position for positions in predictors for position in positions})
        # 2. One pass.
        logits = self._rows.select([row.history for row in rows]).feed_last(tails, columns)
        # 3. The probabilities of yes and no at each answer's token.
        column_of = {position: column for column, position in enumerate(columns)}
        for index, (row, positions) in enumerate(zip(rows, predictors, strict=True)):
            chosen = logits[index, [column_of[position] for position in positions]].float().softmax(dim=-1).cpu()
            row.probabilities = [
                YesNo(float(distribution[token.yes]), float(distribution[token.no]))
                for distribution, token in zip(chosen, row.answer_tokens, strict=True)
            ]
