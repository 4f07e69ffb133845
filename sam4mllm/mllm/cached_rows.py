"""CachedRows: a batch of token rows with the model's cache, which can be copied, continued, and joined with others.

Every row ends in the last column, and padding is on its left alone, whatever numbers of tokens are fed to the rows in
one pass: a sliding window then covers the same tokens as without padding, and recurrent states see no padding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.location_passes import boxes_of_rows, region_inputs

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class CachedRows:
    """Rows of tokens of which the model has computed the keys and values, or the recurrent states.

    Attributes:
        mllm: The model.
        cache: Its cache of all rows, of transformers' `DynamicCache`.
        mask: The attention mask (B, T): 0 for the padding on the left.
        rope_deltas: For models with position ids of their own for images (M-RoPE), the offset (B, 1) of the text after
            the image; None for others.
    """

    mllm: Mllm
    cache: Any
    mask: torch.Tensor
    rope_deltas: torch.Tensor | None

    @classmethod
    def compute(cls, mllm: Mllm, inputs: Any, tokens: Sequence[Sequence[int]] = ()) -> tuple[CachedRows, torch.Tensor]:
        """Return the rows of a left-padded batch, and the logits (B, V) of the token after each.

        `tokens` are the tokens of each row, with images as placeholders; those that are `RegionToken` are embedded by
        their boxes.
        """
        import torch

        inputs = _without_padding(inputs)
        mask = inputs["attention_mask"]
        # Models with M-RoPE compute the position ids of images themselves, and keep the offset of the text after an
        # image in `rope_deltas`, also after a batch without images, which has no offset.
        inner, position_ids = _inner_model(mllm.model), _position_ids(mask)
        own = hasattr(inner, "rope_deltas")
        own_ids = own and any(name.endswith("grid_thw") for name in inputs)
        positions = {} if own_ids else {"position_ids": position_ids.expand(3, -1, -1) if own else position_ids}
        with region_inputs(mllm, boxes_of_rows(tokens, inputs["input_ids"], mask)):
            output = mllm.model(**inputs, **positions, use_cache=True, logits_to_keep=1)
        deltas = inner.rope_deltas if own_ids else torch.zeros_like(mask[:, :1]) if own else None
        return cls(mllm, output[cache_name()], mask, deltas), output.logits[:, -1]

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: Sequence[int]) -> CachedRows:
        """Return a copy of the given rows, in their order; a row may be given several times."""
        import torch

        cache = _shallow_copy(self.cache)
        index = torch.tensor(rows, device=self.mask.device)
        # The tensors of a cache without recurrent states are never changed in place, so all rows need no copy.
        if list(rows) != list(range(len(self))) or any(map(_is_recurrent, cache.layers)):
            cache.reorder_cache(index)
        deltas = None if self.rope_deltas is None else self.rope_deltas.to(index.device)[index]
        return CachedRows(self.mllm, cache, self.mask[index], deltas)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but the given rows, which may also change their order."""
        kept = self.select(rows)
        self.cache, self.mask, self.rope_deltas = kept.cache, kept.mask, kept.rope_deltas

    def feed(self, tokens: Sequence[Sequence[int]], columns: Sequence[int]) -> torch.Tensor:
        """Append tokens to the rows, and return the logits (B, len(columns), V) of the tokens after those at `columns`.

        The rows may get different numbers of tokens. `columns` are ascending indices into them; for a row of fewer
        tokens, the logits at columns that it does not have are meaningless.
        """
        lengths = [len(row) for row in tokens]
        if min(lengths) == max(lengths) or self.allows_unequal(max(lengths)):
            logits = self.feed_last(tokens, columns)
            self._drop_right([max(lengths) - length for length in lengths])
            return logits
        return self._feed_by_length(tokens, columns)

    def feed_last(self, tokens: Sequence[Sequence[int]], columns: Sequence[int]) -> torch.Tensor:
        """Return the logits of `feed` from one pass, after which rows of different numbers are not usable."""
        import torch

        device, length = self.mask.device, max(map(len, tokens))
        # 1. The tokens, right-padded, with their attention mask and position ids.
        ids = torch.full((len(tokens), length), self.mllm.processor.tokenizer.pad_token_id)
        new = torch.zeros((len(tokens), length), dtype=self.mask.dtype)
        for index, row in enumerate(tokens):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
            new[index, : len(row)] = 1
        self.mask = torch.cat([self.mask, new.to(device)], dim=1)
        position_ids = _position_ids(self.mask)[:, -length:]
        if self.rope_deltas is not None:
            position_ids = (position_ids + self.rope_deltas.to(device)).expand(3, -1, -1)
        # 2. One pass.
        with region_inputs(self.mllm, boxes_of_rows(tokens, ids, new)):
            output = self.mllm.model(
                input_ids=ids.to(device),
                attention_mask=self.mask,
                position_ids=position_ids,
                use_cache=True,
                logits_to_keep=torch.tensor(columns, device=device),
                **{cache_name(): self.cache},
            )
        self.cache = output[cache_name()]
        # A class without `logits_to_keep` (MiniCPM-V 4.6) returns the logits of all positions.
        return output.logits if output.logits.shape[1] == len(columns) else output.logits[:, columns]

    def allows_unequal(self, count: int) -> bool:
        """Return whether the rows may get different numbers of up to `count` tokens in one pass.

        Padding is fed on the right and moved to the left afterwards. Recurrent states and tensors of unknown layers
        cannot be moved, and a sliding window that is full has lost the tokens that would take the place of padding.
        """
        return not any(
            _is_recurrent(layer)
            or (_is_sliding(layer) and layer.cumulative_length + count >= layer.sliding_window)
            or _unknown_tensors(layer)
            for layer in self.cache.layers
        )

    def shorten(self, counts: Sequence[int]) -> bool:
        """Remove the last tokens of each row, as many as `counts` has; return whether the cache allows it."""
        allowed = self.allows_unequal(0) or not any(counts)
        if allowed:
            self._drop_right(counts)
        return allowed

    def _drop_right(self, counts: Sequence[int]) -> None:
        """Remove the last tokens of each row, as many as `counts` has, in exchange for padding on its left."""
        import torch

        if not any(counts):
            return
        shift = torch.tensor(counts, device=self.mask.device)[:, None]
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)[None] - shift
        # Columns from the right end come to the left end, where they are masked.
        self.mask = self.mask.gather(1, columns % self.mask.shape[1]).masked_fill(columns < 0, 0)
        # Columns that are padding in every row are dropped.
        start = min(counts)
        for layer in self.cache.layers:
            if _has_keys(layer):
                index = (columns % layer.keys.shape[2])[:, None, :, None]
                layer.keys = layer.keys.gather(2, index.expand_as(layer.keys))[:, :, start:]
                layer.values = layer.values.gather(2, index.expand_as(layer.values))[:, :, start:]
                if _is_sliding(layer):
                    layer.cumulative_length -= start
        self.mask = self.mask[:, start:]

    def _feed_by_length(self, tokens: Sequence[Sequence[int]], columns: Sequence[int]) -> torch.Tensor:
        """Do what `feed` does in one pass for each number of tokens."""
        import torch

        parts, order, logits = [], [], {}
        for length in sorted({len(row) for row in tokens}):
            chosen = [index for index, row in enumerate(tokens) if len(row) == length]
            part = self.select(chosen)
            if length:
                present = [column for column in columns if column < length]
                computed = part.feed_last([tokens[index] for index in chosen], present or [length - 1])
                for index, row in zip(chosen, computed, strict=True):
                    # The last one fills the columns that the row does not have.
                    logits[index] = row[[min(number, len(row) - 1) for number in range(len(columns))]]
            parts.append(part)
            order += chosen
        joined = join(parts).select([order.index(index) for index in range(len(tokens))])
        self.cache, self.mask, self.rope_deltas = joined.cache, joined.mask, joined.rope_deltas
        filler = next(iter(logits.values()))
        return torch.stack([logits.get(index, filler) for index in range(len(tokens))])


def join(parts: Sequence[CachedRows]) -> CachedRows:
    """Return all rows of `parts` as one batch, in their order, left-padded to the length of the longest.

    Raises:
        ModelError: The model's cache has tensors for which no rule of padding is known.
    """
    import torch
    from torch.nn.functional import pad

    if len(parts) == 1:
        return parts[0]

    def padded(tensors: Iterable[torch.Tensor], dim: int) -> torch.Tensor:
        """Concatenate tensors along the rows, with zeros before the first elements of the dimension `dim`."""
        tensors = list(tensors)
        longest = max(tensor.shape[dim] for tensor in tensors)
        trailing = (0, 0) * (tensors[0].ndim - 1 - dim)
        return torch.cat([pad(tensor, (*trailing, longest - tensor.shape[dim], 0)) for tensor in tensors])

    first = parts[0]
    cache = _shallow_copy(first.cache)
    for number, layer in enumerate(cache.layers):
        layers = [part.cache.layers[number] for part in parts]
        if unknown := _unknown_tensors(layer):
            raise ModelError(
                f"the model's cache has layers of the kind {type(layer).__name__}, whose {', '.join(unknown)} cannot "
                "be joined with those of other rows; compute one row at once (generation.batch_size: 1, --batch-size 1)"
            )
        if _has_keys(layer):
            layer.keys = padded((each.keys for each in layers), 2)
            layer.values = padded((each.values for each in layers), 2)
        if _is_sliding(layer):
            layer.cumulative_length = max(each.cumulative_length for each in layers)
        if _is_recurrent(layer):
            for name in ("conv_states", "recurrent_states"):
                states = getattr(layer, name)
                for key in states:
                    if states[key] is not None:
                        states[key] = torch.cat([getattr(each, name)[key] for each in layers])
    deltas = None if first.rope_deltas is None else torch.cat([part.rope_deltas for part in parts])  # type: ignore[misc]
    return CachedRows(first.mllm, cache, padded((part.mask for part in parts), 1), deltas)


def cache_name() -> str:
    """Return the name of the cache among the arguments and outputs of models, which transformers 5.24 renamed."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


def _without_padding(inputs: Any) -> Any:
    """Return a left-padded batch without the columns that are padding in every row."""
    shape = inputs["input_ids"].shape
    start = int(inputs["attention_mask"].any(dim=0).int().argmax())
    for name, value in inputs.items():
        if value.shape == shape:
            inputs[name] = value[:, start:]
    return inputs


def _has_keys(layer: Any) -> bool:
    """Return whether a layer of a cache holds keys and values; layers that use those of another layer do not."""
    return getattr(layer, "keys", None) is not None


def _unknown_tensors(layer: Any) -> list[str]:
    """Return the names of a layer's tensors other than keys, values and recurrent states, as those of sparse attention.

    The length of a sliding window is a tensor as well, but the same for all rows.
    """
    import torch

    known = ("keys", "values", "conv_states", "recurrent_states", "_sliding_window_tensor")
    return [
        name for name, value in vars(layer).items() if name not in known and isinstance(value, torch.Tensor | tuple)
    ]


def _is_sliding(layer: Any) -> bool:
    """Return whether a layer of a cache keeps the keys and values of the last tokens only."""
    return bool(getattr(layer, "is_sliding", False)) and _has_keys(layer)


def _is_recurrent(layer: Any) -> bool:
    """Return whether a layer of a cache holds states of fixed size (of a short convolution or linear attention)."""
    return hasattr(layer, "conv_states")


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


def _position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Return each token's position (B, T) among the unmasked tokens of its row; 0 for padding, as in `generate`."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _inner_model(model: Any) -> Any:
    """Return the model under the output layer, with or without an adapter around it."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model
