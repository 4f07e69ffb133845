"""Yes/no probabilities for PQPP's round two, read from the model's output distribution, many questions in one batch.

The conversation before the questions (image, boxes) is computed once; its key/value cache is shared by all of them. In
a question about several points each answer depends on the answers before it, so decoding would take one pass per
answer. Instead, all answers are read from one pass over guessed answers, and guessed again until no guess changes
(Jacobi decoding; Santilli et al. 2023, arXiv 2305.10427): the fixed point equals greedy decoding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.utils.memory import DeviceBatch

if TYPE_CHECKING:
    import torch


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


def score_answers(mllm: Mllm, queries: Sequence[YesNoQuery], batch: DeviceBatch) -> list[list[list[YesNo]]]:
    """Return, for each query and each of its questions, the probabilities of each of its answers.

    Yes and no are the first tokens that differ between the two answers in this model's rendered chat. An answer is
    conditioned on the model's own answers before it in the same question: yes if it is more probable than no.

    Raises:
        DataError: An image cannot be read.
        ModelError: The model's chat template or tokenizer does not separate the answers.
    """
    import torch

    with torch.no_grad():
        scored = batch.map(queries, lambda part: _score_batch(mllm, part, batch))
        return [probabilities for part in scored for probabilities in part]


def _score_batch(mllm: Mllm, queries: Sequence[YesNoQuery], batch: DeviceBatch) -> list[list[list[YesNo]]]:
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
        prefix = _Prefix(mllm, [query.history for query in with_questions], rows)
        # 3. Jacobi iteration: score all answers given the guess, guess the more probable ones, and repeat with those
        #    rows whose guess has changed. Rows of similar length share a pass, so little is padded.
        #    An answer is final once those before it are, so there are at most as many passes as a list has answers. The
        #    limit matters for quantized weights, whose rounding could let a later guess change an earlier answer.
        pending = sorted(rows, key=lambda row: (len(row.tokens), row.history))
        for _ in range(max(len(row.guess) for row in rows)):
            for _ in batch.map(pending, prefix.score):
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
    texts = mllm.processor.apply_chat_template([variant.messages() for variant in variants], tokenize=False)
    ids = mllm.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    # 2. The answer's token is the first one in which the two texts differ.
    positions = [_common_length(yes, no) for yes, no in pairs]
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


class _Prefix:
    """The key/value cache of a left-padded batch of histories, shared by the rows that follow them."""

    def __init__(self, mllm: Mllm, histories: Sequence[Conversation], rows: Sequence[_Row]) -> None:
        self._mllm = mllm
        # 1. The part of each history that it shares with the text of all its questions: where history and question
        #    meet, the tokens may differ.
        plain = [_token_ids(mllm, history.messages()) for history in histories]
        self._shared_lengths = [
            min(_common_length(ids, row.tokens) for row in rows if row.history == index)
            for index, ids in enumerate(plain)
        ]
        # 2. The batch, without the tokens of each row after that part.
        inputs = model_inputs(
            mllm.processor, [messages_with_image(history) for history in histories], padding_side="left"
        ).to(mllm.device, mllm.dtype)
        for index, (history, ids) in enumerate(zip(histories, plain, strict=True)):
            _check_same_tail(mllm, history, ids, inputs["input_ids"][index].tolist())
            _drop_tail(inputs, index, len(ids) - self._shared_lengths[index])
        self._mask = inputs["attention_mask"]
        # 3. One pass fills the cache. Models with position ids of their own for images (M-RoPE) compute them
        #    themselves, and keep the offset of the text after the image in `rope_deltas`.
        inner = _inner_model(mllm.model)
        position_ids = {} if hasattr(inner, "rope_deltas") else {"position_ids": _position_ids(self._mask)}
        self._cache = mllm.model(**inputs, **position_ids, use_cache=True, logits_to_keep=1).past_key_values
        self._rope_deltas = getattr(inner, "rope_deltas", None)

    def score(self, rows: Sequence[_Row]) -> None:
        """Run one pass over the rows and set the probabilities of their answers."""
        import torch

        mllm, device = self._mllm, self._mask.device
        # 1. The rows' tokens after the cached part, right-padded.
        tails = [row.tokens[self._shared_lengths[row.history] :] for row in rows]
        length = max(map(len, tails))
        ids = torch.full((len(rows), length), mllm.processor.tokenizer.pad_token_id)
        tail_mask = torch.zeros((len(rows), length), dtype=self._mask.dtype)
        for index, tail in enumerate(tails):
            ids[index, : len(tail)] = torch.tensor(tail)
            tail_mask[index, : len(tail)] = 1
        # 2. Attention mask, position ids and cache of the history that each row follows.
        histories = torch.tensor([row.history for row in rows], device=device)
        mask = torch.cat([self._mask[histories], tail_mask.to(device)], dim=1)
        position_ids = _position_ids(mask)[:, -length:]
        if self._rope_deltas is not None:
            position_ids = (position_ids + self._rope_deltas.to(device)[histories]).expand(3, -1, -1)
        cache = _shallow_copy(self._cache)
        cache.reorder_cache(histories)
        # 3. One pass; the logits that predict an answer's token are those at the token before it.
        predictors = [
            [token.position - 1 - self._shared_lengths[row.history] for token in row.answer_tokens] for row in rows
        ]
        columns = sorted({position for positions in predictors for position in positions})
        logits = mllm.model(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(columns, device=device),
        ).logits
        if logits.shape[1] != len(columns):
            # A class without `logits_to_keep` (MiniCPM-V 4.6) returns the logits of all positions.
            logits = logits[:, columns]
        # 4. The probabilities of yes and no at each answer's token.
        column_of = {position: column for column, position in enumerate(columns)}
        for index, (row, positions) in enumerate(zip(rows, predictors, strict=True)):
            chosen = logits[index, [column_of[position] for position in positions]].float().softmax(dim=-1).cpu()
            row.probabilities = [
                YesNo(float(distribution[token.yes]), float(distribution[token.no]))
                for distribution, token in zip(chosen, row.answer_tokens, strict=True)
            ]


def _shallow_copy(cache: Any) -> Any:
    """Copy a cache without its tensors: reordering the copy makes new tensors, so the original keeps its own."""
    copied = copy.copy(cache)
    copied.layers = []
    for layer in cache.layers:
        copied_layer = copy.copy(layer)
        copied_layer.__dict__ = {
            name: copy.copy(value) if isinstance(value, list | dict) else value for name, value in vars(layer).items()
        }
        copied.layers.append(copied_layer)
    return copied


def _token_ids(mllm: Mllm, messages: list[dict[str, Any]], *, prompt: bool = False) -> list[int]:
    text = mllm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return mllm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_same_tail(mllm: Mllm, history: Conversation, plain: Sequence[int], expanded: Sequence[int]) -> None:
    """Check that the tokens after the first question are equal in the plain text and in the row with image tokens.

    Raises:
        ModelError: They differ.
    """
    tail = len(plain) - _common_length(plain, _token_ids(mllm, history.messages(1), prompt=True))
    if list(plain[len(plain) - tail :]) != list(expanded[len(expanded) - tail :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so answers cannot be scored; "
            "use method.name=ppg with this model"
        )


def _drop_tail(inputs: Any, row: int, count: int) -> None:
    """Remove the last `count` tokens from a left-padded row of a batch, which gets as many more on its left.

    Padding is masked, whatever its tokens are, so the removed tokens become the additional padding.
    """
    if count == 0:
        return
    shape = inputs["input_ids"].shape
    inputs["attention_mask"][row, -count:] = 0
    for name, value in inputs.items():
        if value.shape == shape:
            inputs[name][row] = value[row].roll(count)


def _position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Return each token's position (B, T) among the unmasked tokens of its row; 0 for padding, as in `generate`."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _inner_model(model: Any) -> Any:
    """Return the model under the output layer, with or without an adapter around it."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of tokens that two rows have in common from the beginning."""
    for length, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return length
    return min(len(first), len(second))
