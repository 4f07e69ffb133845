"""The decoding loop: the tokens of a batch of answers, the most probable or random ones, free or constrained.

The finished answers become replies by `reply_of`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sam4mllm.mllm.cached_rows import CachedRows
from sam4mllm.mllm.engine import Reply, TokenConstraint
from sam4mllm.mllm.location_passes import CapturedStates, captured_states

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Generated:
    """One answer while it is generated.

    Attributes:
        constraint: Restricts its tokens; None for no restriction.
        rng: The random numbers by which its tokens are drawn; None for the most probable tokens.
        temperature: The divisor of the logits for tokens that are drawn.
        tokens: The tokens so far.
        logprobs: The natural logarithms of the tokens' probabilities in the model's distribution, which neither
            constraint nor temperature changes. That of an end token that is forced is left out, and those of the last
            tokens of an answer that was cut off, because they would need another pass.
        fed: The number of tokens that the model has been given.
        states: The last hidden states (d,) float32 at the location tokens, in order, if they are asked for.
    """

    constraint: TokenConstraint | None = None
    rng: random.Random | None = None
    temperature: float = 1.0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    fed: int = 0
    states: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Where answers end: at a token of `end_ids`, or after `max_new_tokens` tokens.

    Tokens `location_id`, unless it is None, are fed also where no token follows, because their state is needed.
    """

    end_ids: Collection[int]
    max_new_tokens: int
    location_id: int | None

    def ended(self, answer: Generated) -> bool:
        return bool(answer.tokens) and answer.tokens[-1] in self.end_ids

    def append(self, answer: Generated, tokens: Sequence[int]) -> None:
        """Append tokens to an answer, up to its end."""
        for token in tokens:
            if self.ended(answer) or len(answer.tokens) == self.max_new_tokens:
                return
            answer.tokens.append(token)
            if answer.constraint is not None:
                answer.constraint.accept(token)

    def append_forced(self, answer: Generated) -> None:
        """Append the tokens that have no alternative, if the answer has not ended."""
        while (
            answer.constraint is not None
            and not self.ended(answer)
            and len(answer.tokens) < self.max_new_tokens
            and (tokens := answer.constraint.forced())
        ):
            self.append(answer, tokens)

    def unfed(self, answer: Generated) -> list[int]:
        """Return the tokens that the model is to be given, for the next choice or log-probability; none at the end."""
        stop = len(answer.tokens)
        if self.ended(answer):
            # The end token is not part of the text, and the token before it needs no successor.
            stop -= 2
        elif stop == self.max_new_tokens:
            stop = answer.fed
        if self.location_id in answer.tokens[max(answer.fed, stop) :]:
            stop = len(answer.tokens) - answer.tokens[::-1].index(self.location_id)
        return answer.tokens[answer.fed : max(answer.fed, stop)]


def decode(
    rows: CachedRows,
    logits: torch.Tensor,
    answers: Sequence[Generated],
    max_new_tokens: int,
    end_ids: Collection[int],
    location_id: int | None = None,
) -> None:
    """Generate the tokens of `answers` up to an end token or the limit.

    The state at a token is known from the pass that it is fed in, which a token before a forced end would not need.

    Args:
        rows: The prompts, one row for each answer; they are used up.
        logits: The logits (B, V) of the first token of each answer.
        answers: The answers, without tokens.
        max_new_tokens: The limit of tokens per answer.
        end_ids: The tokens that end an answer.
        location_id: The token of which the states are kept; None for none.
    """
    limits = _Limits(end_ids, max_new_tokens, location_id)
    with captured_states(rows.mllm) if location_id is not None else nullcontext(CapturedStates()) as captured:
        _decode(rows, logits, list(answers), limits, captured)


def _decode(
    rows: CachedRows, logits: torch.Tensor, live: list[Generated], limits: _Limits, captured: CapturedStates
) -> None:
    """Generate the tokens of the answers `live`, as `decode`; `captured` has the states of each pass."""
    import torch

    while live:
        # 1. The next token of each answer, unless a constraint has fixed it before; and its log-probability.
        _append_next(limits, live, logits.float())
        # 2. Complete answers leave the batch.
        unfed = [limits.unfed(answer) for answer in live]
        kept = [index for index, tokens in enumerate(unfed) if tokens]
        if len(kept) < len(live):
            live, unfed = [live[index] for index in kept], [unfed[index] for index in kept]
            if not live:
                return
            rows.keep(kept)
        # 3. All tokens that are known are fed in one pass, or as many as every answer has, if the cache requires it.
        counts = [len(tokens) for tokens in unfed]
        if not rows.allows_unequal(max(counts)):
            counts = [min(counts)] * len(counts)
        fed = rows.feed([tokens[:count] for tokens, count in zip(unfed, counts, strict=True)], list(range(max(counts))))
        # 4. The log-probabilities of the known tokens after the first, and the logits of the next token.
        for index, (answer, count) in enumerate(zip(live, counts, strict=True)):
            if count > 1:
                following = unfed[index][1:count]
                answer.logprobs += _logprobs(fed[index, : count - 1].float(), following)
            located = [position for position in range(count) if unfed[index][position] == limits.location_id]
            if located and captured.states is not None:
                answer.states += captured.states[index, located].float()
            answer.fed += count
        last = torch.tensor(counts, device=fed.device) - 1
        logits = fed[torch.arange(len(live), device=fed.device), last]
        # 5. Answers at the limit, which were fed for the state of their last token alone, leave the batch.
        kept = [index for index, answer in enumerate(live) if answer.fed < limits.max_new_tokens]
        if len(kept) < len(live):
            live, logits = [live[index] for index in kept], logits[kept]
            if live:
                rows.keep(kept)


def _append_next(limits: _Limits, live: Sequence[Generated], logits: torch.Tensor) -> None:
    """Append the next token of each answer and those that follow without alternative, given its logits (B, V)."""
    for answer in live:
        if not answer.tokens:
            limits.append_forced(answer)
    choosing = [index for index, answer in enumerate(live) if len(answer.tokens) == answer.fed]
    if choosing:
        tokens = _choose(
            [live[index] for index in choosing], logits if len(choosing) == len(live) else logits[choosing]
        )
        for index, token in zip(choosing, tokens, strict=True):
            limits.append(live[index], [token])
            limits.append_forced(live[index])
    logprobs = _logprobs(logits, [answer.tokens[answer.fed] for answer in live])
    for answer, logprob in zip(live, logprobs, strict=True):
        answer.logprobs.append(logprob)


def _choose(answers: Sequence[Generated], logits: torch.Tensor) -> list[int]:
    """Return the next token of each answer: the most probable one that its constraint allows, or a random one."""
    import torch

    if any(answer.constraint is not None for answer in answers):
        logits = logits.clone()
        for answer, row in zip(answers, logits, strict=True):
            if answer.constraint is not None:
                answer.constraint.restrict(row)
    tokens = logits.argmax(dim=-1)
    for index, answer in enumerate(answers):
        if answer.rng is not None:
            # The inverse of the cumulative distribution: one random number a token, whatever the batch is.
            cumulative = (logits[index] / answer.temperature).softmax(dim=-1).cumsum(dim=-1)
            # Below 1 also in float32, so that the last token is not drawn if its probability is 0.
            drawn = answer.rng.random() * (1 - 1e-6) * cumulative[-1:]
            tokens[index] = torch.searchsorted(cumulative, drawn, right=True)[0]
    return tokens.tolist()


def _logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token, given the logits (N, V) of its position."""
    import torch

    index = torch.tensor(tokens, device=logits.device)[:, None]
    return logits.log_softmax(dim=-1).gather(1, index)[:, 0].tolist()


def reply_of(tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], end_ids: Sequence[int]) -> Reply:
    """Decode the new tokens of a row, without special tokens, and assign the log-probabilities to parts of the text.

    A reply without an end token was cut off; it gets no log-probabilities, because it is not an answer.
    """
    length = next((index + 1 for index, token in enumerate(tokens) if token in end_ids), None)
    if length is None:
        return Reply(tokenizer.decode(tokens, skip_special_tokens=True).strip(), finished=False)
    text, ends = text_with_ends(tokenizer, tokens[:length])
    # Tokens that add nothing to the text (the end token, surrounding white space) are left out.
    added = [(end, logprob) for start, end, logprob in zip([0, *ends], ends, logprobs, strict=False) if end > start]
    return Reply(text, tokens=tuple(added))


def text_with_ends(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """Return the text of tokens, without special tokens and surrounding white space, and where in it each token ends.

    A token may add no character by itself (a part of a UTF-8 sequence), so the end of each token is the length of the
    text that the tokens up to it decode to.
    """
    prefixes = tokenizer.batch_decode([tokens[: count + 1] for count in range(len(tokens))], skip_special_tokens=True)
    text: str = prefixes[-1].strip()
    stripped = len(prefixes[-1]) - len(prefixes[-1].lstrip())
    return text, [min(max(len(prefix) - stripped, 0), len(text)) for prefix in prefixes]
