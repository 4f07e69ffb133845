"""What a model thinks of yes/no questions: probabilities read from its own distribution, many questions together.

The conversation before the questions (image, box) is computed once, and its keys and values serve all of them. A
question about several things is answered one by one in principle, each answer after those before it. All of them are
read from one pass over guessed answers instead, and guessed again until no guess changes (Jacobi decoding; Santilli et
al. 2023, arXiv 2305.10427): the fixed point is what decoding one by one gives. This module knows no points and masks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery, YesNoQuestion, write_answers

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Row:
    """One question while it is answered: the guessed answers, what they weigh, and the tokens to feed."""

    owner: int
    asked: Conversation
    answers: list[bool]
    weights: list[YesNo] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    slots: list[_Slot] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the two answers part: `place` is the position of the token that is `yes` or `no`."""

    place: int
    yes: int
    no: int


def score_answers(mllm: Mllm, inquiries: Sequence[YesNoQuery], batch_size: int) -> list[list[list[YesNo]]]:
    """For each inquiry, for each of its questions, the probabilities of each of its answers.

    Yes and no are the tokens at which the two answers part in this model's own chat text. An answer follows those that
    the model itself gives to the same question, by the likelier of yes and no.

    Raises:
        DataError: an image cannot be read.
        ModelError: the chat template or the tokenizer does not let the answers be told apart.
    """
    import torch

    found: list[list[list[YesNo]]] = []
    with torch.no_grad():
        for start in range(0, len(inquiries), batch_size):
            found += _weigh_together(mllm, inquiries[start : start + batch_size], batch_size)
    return found


def _weigh_together(mllm: Mllm, inquiries: Sequence[YesNoQuery], batch_size: int) -> list[list[list[YesNo]]]:
    asking = [index for index, inquiry in enumerate(inquiries) if inquiry.questions]
    rows = [
        _Row(owner, _asked(inquiries[index].history, question), [False] * question.count)
        for owner, index in enumerate(asking)
        for question in inquiries[index].questions
    ]
    if rows:
        for row in rows:
            _lay_out(mllm, row)
        prefix = _Prefix(mllm, [inquiries[index].history for index in asking], rows)
        # Rows of like length share a pass, so little is padded.
        pending = sorted(rows, key=lambda row: (len(row.tokens), row.owner))
        # An answer is settled once those before it are, so after as many passes as a list has answers all are; the
        # bound is for quantised weights, whose arithmetic may let a later guess move an earlier answer.
        for _ in range(max(len(row.answers) for row in rows)):
            for start in range(0, len(pending), batch_size):
                prefix.read(pending[start : start + batch_size])
            pending = [row for row in pending if _guess_again(mllm, row)]
            if not pending:
                break
    answered: Iterator[_Row] = iter(rows)
    return [[next(answered).weights for _ in inquiry.questions] for inquiry in inquiries]


def _guess_again(mllm: Mllm, row: _Row) -> bool:
    """Takes the likelier answers as the next guess; returns whether a guess changed that later answers follow."""
    likelier = [weight.yes > weight.no for weight in row.weights]
    changed = likelier[:-1] != row.answers[:-1]
    row.answers = likelier
    if changed:
        _lay_out(mllm, row)
    return changed


def _asked(history: Conversation, question: YesNoQuestion) -> Conversation:
    return Conversation(history.image, (*history.turns, Turn("user", question.text)))


def _said(asked: Conversation, answers: Sequence[bool]) -> Conversation:
    return Conversation(asked.image, (*asked.turns, Turn("assistant", write_answers(answers))))


def _lay_out(mllm: Mllm, row: _Row) -> None:
    """Sets the row's tokens, up to the last answer, and where each answer's yes and no part.

    The answers stand in an assistant's turn, as they are taught: a template may write something between the prompt and
    an answer, and a tokenizer may join a space to the word behind it.

    Raises:
        ModelError: a tokenizer that writes the answers before otherwise, depending on what follows.
    """
    said = [
        _said(row.asked, [*row.answers[:count], answer])
        for count in range(len(row.answers))
        for answer in (True, False)
    ]
    texts = mllm.processor.apply_chat_template([each.messages() for each in said], tokenize=False)
    ids = mllm.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    places = [_common(yes, no) for yes, no in pairs]
    row.tokens = pairs[-1][0][: places[-1]]
    row.slots = [_Slot(place, yes[place], no[place]) for place, (yes, no) in zip(places, pairs, strict=True)]
    if any(yes[:place] != row.tokens[:place] for place, (yes, _) in zip(places, pairs, strict=True)):
        raise ModelError(
            f"the tokenizer does not write {write_answers([True, False])!r} answer by answer, so the answers cannot "
            "be told apart; ask about one point at a time (method.form=single)"
        )


class _Prefix:
    """Conversations computed once, a left-padded batch, whose keys and values are lent to the rows that follow them."""

    def __init__(self, mllm: Mllm, histories: Sequence[Conversation], rows: Sequence[_Row]) -> None:
        self._mllm = mllm
        plain = [_tokens(mllm, history.messages()) for history in histories]
        # What a history's text shares with all its questions' texts; their tokens may differ where they meet.
        self._shared = [
            min(_common(ids, row.tokens) for row in rows if row.owner == owner) for owner, ids in enumerate(plain)
        ]
        inputs = model_inputs(
            mllm.processor, [messages_with_image(history) for history in histories], padding_side="left"
        ).to(mllm.device, mllm.dtype)
        for row, (history, ids) in enumerate(zip(histories, plain, strict=True)):
            _check_tail(mllm, history, ids, inputs["input_ids"][row].tolist())
            _cut_end(inputs, row, len(ids) - self._shared[row])
        self._mask = inputs["attention_mask"]
        # Models with positions of their own for images count them themselves, and keep how far the text is behind.
        inner = _inner(mllm.model)
        positions = {} if hasattr(inner, "rope_deltas") else {"position_ids": _positions(self._mask)}
        self._cache = mllm.model(**inputs, **positions, use_cache=True, logits_to_keep=1).past_key_values
        self._behind = getattr(inner, "rope_deltas", None)

    def read(self, rows: Sequence[_Row]) -> None:
        """One pass over the rows; sets what their answers weigh."""
        import torch

        mllm, device = self._mllm, self._mask.device
        tails = [row.tokens[self._shared[row.owner] :] for row in rows]
        length = max(map(len, tails))
        ids = torch.full((len(rows), length), mllm.processor.tokenizer.pad_token_id)
        fed = torch.zeros((len(rows), length), dtype=self._mask.dtype)
        for index, tail in enumerate(tails):
            ids[index, : len(tail)] = torch.tensor(tail)
            fed[index, : len(tail)] = 1
        owners = torch.tensor([row.owner for row in rows], device=device)
        mask = torch.cat([self._mask[owners], fed.to(device)], dim=1)
        positions = _positions(mask)[:, -length:]
        if self._behind is not None:
            positions = (positions + self._behind.to(device)[owners]).expand(3, -1, -1)
        cache = _lent(self._cache)
        cache.reorder_cache(owners)
        # An answer is foretold at the place before it.
        foretold = [[slot.place - 1 - self._shared[row.owner] for slot in row.slots] for row in rows]
        kept = sorted({place for places in foretold for place in places})
        logits = mllm.model(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=device),
        ).logits
        column = {place: index for index, place in enumerate(kept)}
        for index, (row, places) in enumerate(zip(rows, foretold, strict=True)):
            chosen = logits[index, [column[place] for place in places]].float().softmax(dim=-1).cpu()
            row.weights = [
                YesNo(float(likely[slot.yes]), float(likely[slot.no]))
                for likely, slot in zip(chosen, row.slots, strict=True)
            ]


def _lent(cache: Any) -> Any:
    """The cache as another one whose tensors may be exchanged; reordering makes new ones, so none is copied here."""
    lent = copy.copy(cache)
    lent.layers = []
    for layer in cache.layers:
        own = copy.copy(layer)
        own.__dict__ = {
            name: copy.copy(value) if isinstance(value, list | dict) else value for name, value in vars(layer).items()
        }
        lent.layers.append(own)
    return lent


def _tokens(mllm: Mllm, messages: list[dict[str, Any]], *, prompt: bool = False) -> list[int]:
    text = mllm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return mllm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_tail(mllm: Mllm, history: Conversation, plain: Sequence[int], expanded: Sequence[int]) -> None:
    """What follows the first question must be the same tokens in the plain text and in the row with the image's.

    Raises:
        ModelError: it is not.
    """
    tail = len(plain) - _common(plain, _tokens(mllm, history.messages(1), prompt=True))
    if list(plain[len(plain) - tail :]) != list(expanded[len(expanded) - tail :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so its answers cannot be weighed; "
            "use method.name=ppg with this model"
        )


def _cut_end(inputs: Any, row: int, count: int) -> None:
    """Takes the last `count` tokens off a left-padded row of a batch, which gets as many more on its left.

    The padding's own tokens never count, so any will do: those cut off go there, masked.
    """
    if count == 0:
        return
    shape = inputs["input_ids"].shape
    inputs["attention_mask"][row, -count:] = 0
    for name, value in inputs.items():
        if value.shape == shape:
            inputs[name][row] = value[row].roll(count)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's position (B, T) among those of its row that count; 0 for padding, as `generate` has it."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _inner(model: Any) -> Any:
    """The model under the output layer, with or without an adapter around it."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows share from the beginning."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
