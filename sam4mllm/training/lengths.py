"""Lengths of conversations in tokens, estimated without decoding images, and an order of batches of similar lengths.

A batch is padded to its longest row. With `training.train_sampling_strategy: group_by_length`, conversations are
permuted at random, each window of 50 batches is sorted by length and cut into batches, and the batches are shuffled.
The order depends on the seed and the epoch alone, so a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from sam4mllm.data.images import size_wh_of
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.training.arguments import GROUP_BY_LENGTH
from sam4mllm.training.preview import PIXELS_A_TOKEN, text_tokens

_WINDOW = 50
"""Batches of a window, as in transformers' LengthGroupedSampler."""

_UNKNOWN_WH = (640, 480)
"""The size that an image whose file cannot be opened counts as; training reports the file."""


def conversation_lengths(conversations: Sequence[Conversation], processor: Any) -> list[float]:
    """Estimate the tokens of each conversation from its text and the size of its image, which is not decoded."""
    sizes = [None if each.image is None else size_wh_of(each.image) or _UNKNOWN_WH for each in conversations]
    tokens = _image_tokens(sorted({size for size in sizes if size is not None}), processor)
    return [
        text_tokens(each) + (0 if size is None else tokens[size])
        for each, size in zip(conversations, sizes, strict=True)
    ]


def order_of_conversations(
    conversations: Sequence[Conversation], processor: Any, arguments: Any
) -> BatchesOfSimilarLength | None:
    """Return the order of `training.train_sampling_strategy: group_by_length`; None if it is not set.

    `arguments` are `TrainingArguments`. Batches that several processes compute together are of similar lengths, too.
    """
    if arguments.train_sampling_strategy != GROUP_BY_LENGTH:
        return None
    batch_size = arguments.per_device_train_batch_size * arguments.world_size
    return BatchesOfSimilarLength(conversation_lengths(conversations, processor), batch_size, arguments.seed)


class BatchesOfSimilarLength(Sampler[int]):
    """An order of conversations in which `batch_size` consecutive ones have similar lengths, another in each epoch."""

    def __init__(self, lengths: Sequence[float], batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose order the next iteration has."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order, size = rng.permutation(len(self._lengths)), _WINDOW * self._batch_size
        windows = [order[start : start + size] for start in range(0, len(order), size)]
        grouped = np.concatenate([window[np.argsort(-self._lengths[window], kind="stable")] for window in windows])
        # The last batch may be incomplete, so it stays the last one.
        complete = len(grouped) - len(grouped) % self._batch_size
        batches = grouped[:complete].reshape(-1, self._batch_size)
        return iter([*rng.permutation(batches).ravel().tolist(), *grouped[complete:].tolist()])


def padding_share(lengths: Sequence[float], order: Sequence[int], batch_size: int) -> float:
    """Return the share of padding in all tokens of the batches of an order."""
    rows = [lengths[index] for index in order]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return 1 - sum(rows) / sum(max(batch) * len(batch) for batch in batches)


def _image_tokens(sizes_wh: Sequence[tuple[int, int]], processor: Any) -> dict[tuple[int, int], float]:
    """Return the tokens of an image by its size: the processor's count, or else in proportion to the area."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None or not sizes_wh:
        return {size: size[0] * size[1] / PIXELS_A_TOKEN for size in sizes_wh}
    counted = count(image_sizes=[(height, width) for width, height in sizes_wh])["num_image_tokens"]
    return dict(zip(sizes_wh, map(float, counted), strict=True))
