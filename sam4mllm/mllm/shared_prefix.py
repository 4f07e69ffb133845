"""The tokens that conversations about one image have in common are computed once, for answers and for yes/no questions.

A prompt is the rendered text of a conversation, in which the image is a placeholder. The prompts about an image share
the longest common prefix of their tokens; if all image tokens are in it, it is computed once, and the rest of each
prompt is appended to a copy of its cache. Otherwise (a chat template with the image after the question) every prompt is
computed completely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sam4mllm.data.images import image_key
from sam4mllm.errors import ModelError
from sam4mllm.mllm.cached_rows import CachedRows, join
from sam4mllm.mllm.control_tokens import check_messages
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.location_passes import check_markers, with_regions
from sam4mllm.mllm.sharded_generation import sharded_over_processes
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.utils.memory import is_out_of_memory, release_memory

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a conversation, with the image as a placeholder, of which `length` from the beginning are computed.

    Location tokens of questions are `RegionToken`, so they share a prefix only if their boxes are equal. `asks` is
    whether the generation prompt is among them, so that the model's next token begins an answer.
    """

    conversation: Conversation
    tokens: list[int] = field(repr=False)
    length: int
    asks: bool

    @property
    def key(self) -> object:
        """What identifies the image; prompts without one share nothing."""
        image = self.conversation.image
        return ("no image", id(self)) if image is None else image_key(image)


@dataclass(frozen=True, slots=True)
class ComputedPrefix:
    """The first tokens of a prompt, which row `row` of `rows` holds.

    Attributes:
        conversation: The conversation of the prompt.
        tokens: The prompt's tokens that the row holds, with the image as a placeholder.
        image_end: The number of tokens that hold the image completely.
        rows: The batch with the row.
        row: The index of the row.
        logits: The logits (V,) of the token after the row; empty if they are not known.
    """

    conversation: Conversation
    tokens: list[int] = field(repr=False)
    image_end: int
    rows: CachedRows
    row: int
    logits: torch.Tensor


PrefixStore = dict[object, ComputedPrefix]
"""The computed prefixes by image, for later calls; their conversations keep the images, and so the keys, alive."""


def make_prompts(mllm: Mllm, conversations: Sequence[Conversation]) -> list[Prompt]:
    """Return the prompts of conversations that await an answer.

    Raises:
        DataError: A text holds a control token, or a location token that is not one of its turn's.
        ModelError: A question has a location, but the model has no location heads.
    """
    check_messages(mllm.processor, [conversation.messages() for conversation in conversations])
    check_markers(mllm.processor, conversations)
    tokens = token_ids(mllm, conversations, asks=True)
    return [Prompt(each, ids, len(ids), True) for each, ids in zip(conversations, tokens, strict=True)]


def token_ids(mllm: Mllm, conversations: Sequence[Conversation], *, asks: bool = False) -> list[list[int]]:
    """Return the tokens of rendered conversations, as `Prompt` has them; `asks` adds the generation prompt."""
    if not conversations:
        return []
    chats = [conversation.messages() for conversation in conversations]
    texts = mllm.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=asks)
    rows = mllm.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [with_regions(mllm, conversation, row) for conversation, row in zip(conversations, rows, strict=True)]


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the common beginning of two rows of token ids, or of two texts."""
    for length, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return length
    return min(len(first), len(second))


def compute_with_store(store: PrefixStore | None, compute: Callable[[T], R], item: T) -> R:
    """Return `compute(item)`; where memory runs out, empty the store and compute it again."""
    try:
        return compute(item)
    except Exception as error:
        if not store or not is_out_of_memory(error):
            raise
    # The exception and the tensors in its traceback are gone here, so that their memory can be freed.
    store.clear()
    release_memory()
    return compute(item)


class SharedPrefixes:
    """The computed prefixes of prompts, one for the prompts about an image where the chat template allows it.

    Args:
        mllm: The model.
        prompts: Those for which `rows` can be called.
        store: Prefixes of former calls, which are used where they fit, and to which new ones are added. None keeps
            them for these prompts alone.

    Raises:
        DataError: An image cannot be read, or the processor refuses it.
        ModelError: A prompt ends within the image.
    """

    def __init__(self, mllm: Mllm, prompts: Sequence[Prompt], store: PrefixStore | None = None) -> None:
        # Processes that hold a part of the weights must run the same number of passes, whatever images they have.
        shares = not sharded_over_processes(mllm.model)
        self._mllm = mllm
        self._store = store if shares else None
        self._prefixes: dict[int, ComputedPrefix] = {}
        groups: dict[object, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(prompt.key if shares else id(prompt), []).append(prompt)
        missing = []
        for key, group in groups.items():
            prefix = _fitting(self._store[key], group) if self._store and key in self._store else None
            if prefix is None:
                missing.append(group)
            else:
                self._prefixes.update((id(prompt), prefix) for prompt in group)
        if missing:
            self._compute(missing)

    def rows(self, prompts: Sequence[Prompt]) -> CachedRows:
        """Return a batch that holds the tokens of the prompts, in their order."""
        return self._rows(prompts)[0]

    def rows_and_logits(self, prompts: Sequence[Prompt]) -> tuple[CachedRows, torch.Tensor]:
        """Return the batch of `rows` for prompts that ask, and the logits (B, V) of the token after each of them."""
        import torch

        rows, logits = self._rows(prompts)
        known = [self._prefixes[id(prompt)].logits for prompt in prompts]
        return rows, torch.stack([logits.get(index, each) for index, each in enumerate(known)])

    def clear(self) -> None:
        """Free the prefixes that are not in the store; no rows can be made afterwards."""
        self._prefixes.clear()

    def _rows(self, prompts: Sequence[Prompt]) -> tuple[CachedRows, dict[int, torch.Tensor]]:
        """Return the batch of `rows`, and the logits (V,) after those prompts that are longer than their prefix."""
        prefixes = [self._prefixes[id(prompt)] for prompt in prompts]
        rows = _gather(prefixes)
        tails = [
            prompt.tokens[len(prefix.tokens) : prompt.length] for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]
        last = {index: len(tail) - 1 for index, tail in enumerate(tails) if tail}
        if not last:
            return rows, {}
        columns = sorted(set(last.values()))
        logits = rows.feed(tails, columns)
        return rows, {index: logits[index, columns.index(column)] for index, column in last.items()}

    def _compute(self, groups: list[list[Prompt]]) -> None:
        """Compute the prefix of each group of prompts about the same image; divide groups that cannot share it."""
        mllm = self._mllm
        # 1. The images, with the first prompt of each.
        inputs = model_inputs(
            mllm.processor,
            [messages_with_image(group[0].conversation) for group in groups],
            padding_side="left",
            add_generation_prompt=groups[0][0].asks,
        ).to(mllm.device, mllm.dtype)
        # 2. The tokens that hold the image, and those that the prompts have in common.
        ends = [
            _image_end(group[0], inputs["input_ids"][index][inputs["attention_mask"][index] == 1].tolist())
            for index, group in enumerate(groups)
        ]
        lengths = [self._shared_length(group) for group in groups]
        within = [length < end for length, end in zip(lengths, ends, strict=True)]
        if any(cut and len(group) > 1 for cut, group in zip(within, groups, strict=True)):
            divided = [
                part
                for cut, group in zip(within, groups, strict=True)
                for part in ([[prompt] for prompt in group] if cut else [group])
            ]
            return self._compute(divided)
        # 3. A prompt that shares nothing is computed completely.
        for index, group in enumerate(groups):
            if within[index]:
                lengths[index] = _complete_length(group[0])
            _drop_tail(inputs, index, len(group[0].tokens) - lengths[index])
        tokens = [group[0].tokens[:length] for group, length in zip(groups, lengths, strict=True)]
        rows, logits = CachedRows.compute(mllm, inputs, tokens)
        for index, (group, length, end) in enumerate(zip(groups, lengths, ends, strict=True)):
            first = group[0]
            prefix = ComputedPrefix(first.conversation, first.tokens[:length], end, rows, index, logits[index])
            self._prefixes.update((id(prompt), prefix) for prompt in group)
            if self._store is not None:
                self._store[first.key] = prefix

    def _shared_length(self, group: Sequence[Prompt]) -> int:
        """Return the number of tokens that the prompts have in common.

        A single prompt whose prefix is stored ends where a conversation with its answer has other tokens: the
        generation prompt may hold an empty block of thoughts, which a later turn does not have.
        """
        first = group[0]
        if len(group) > 1:
            return min(common_length(first.tokens[: first.length], prompt.tokens[: prompt.length]) for prompt in group)
        if self._store is None or not first.asks:
            return first.length
        answered = Conversation(first.conversation.image, (*first.conversation.turns, Turn("assistant", "[")))
        return common_length(first.tokens, token_ids(self._mllm, [answered])[0])


def _fitting(prefix: ComputedPrefix, group: Sequence[Prompt]) -> ComputedPrefix | None:
    """Return a computed prefix, shortened to what a group of prompts begins with; None if it is of no use."""
    length = min(common_length(prefix.tokens, prompt.tokens[: prompt.length]) for prompt in group)
    if length == len(prefix.tokens):
        return prefix
    if length < prefix.image_end or any(prompt.asks and prompt.length == length for prompt in group):
        return None
    rows = prefix.rows.select([prefix.row])
    if not rows.shorten([len(prefix.tokens) - length]):
        return None
    return replace(prefix, tokens=prefix.tokens[:length], rows=rows, row=0, logits=prefix.logits[:0])


def _gather(prefixes: Sequence[ComputedPrefix]) -> CachedRows:
    """Return a batch of the rows of computed prefixes, in their order."""
    batches = {id(prefix.rows): prefix.rows for prefix in prefixes}
    if len(batches) == 1:
        return prefixes[0].rows.select([prefix.row for prefix in prefixes])
    members = [[index for index, prefix in enumerate(prefixes) if id(prefix.rows) == key] for key in batches]
    parts = [
        rows.select([prefixes[index].row for index in chosen])
        for rows, chosen in zip(batches.values(), members, strict=True)
    ]
    order = [index for chosen in members for index in chosen]
    return join(parts).select([order.index(index) for index in range(len(prefixes))])


def _image_end(prompt: Prompt, expanded: Sequence[int]) -> int:
    """Return how many of a prompt's tokens hold the image completely, given the row with all image tokens.

    After the image both have the same tokens. One more is counted, because the last image token may be the placeholder.
    """
    if prompt.conversation.image is None:
        return 0
    return len(prompt.tokens) - common_length([int(token) for token in reversed(prompt.tokens)], expanded[::-1]) + 1


def _complete_length(prompt: Prompt) -> int:
    """Return the length of a prompt that is computed completely.

    Raises:
        ModelError: It is to be computed in part, which ends within the image.
    """
    if prompt.length < len(prompt.tokens):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so answers cannot be scored; "
            "use method.name=ppg with this model"
        )
    return prompt.length


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
