"""The name of a model's cache; rows whose cache has unknown tensors, which are never joined or shortened silently."""

from __future__ import annotations

import inspect
from typing import Any, cast

import pytest
import torch
from transformers import FastVlmForConditionalGeneration
from transformers.cache_utils import Cache, DynamicIndexedLayer, DynamicLayer, StaticLayer

from sam4mllm.errors import ModelError
from sam4mllm.mllm.cached_rows import CachedRows, cache_name, join
from sam4mllm.mllm.loading import Mllm


def rows_of(layer: Any, tokens: int) -> CachedRows:
    """One row of `tokens` tokens in a cache of one layer."""
    states = torch.ones(1, 2, tokens, 4)
    layer.update(states, states)
    if isinstance(layer, DynamicIndexedLayer):
        layer.update_indexer(torch.ones(1, tokens, 4))
    return CachedRows(cast(Mllm, None), Cache(layers=[layer]), torch.ones(1, tokens, dtype=torch.long), None)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (DynamicIndexedLayer, r"DynamicIndexedLayer, whose indexer_keys cannot be joined .*generation.batch_size: 1"),
        (lambda: StaticLayer(max_cache_len=8), "StaticLayer, whose cumulative_length cannot"),
    ],
)
def test_rows_with_unknown_tensors_are_not_joined(layer: Any, named: str) -> None:
    first, second = rows_of(layer(), 3), rows_of(layer(), 2)
    with pytest.raises(ModelError, match=named):
        join([first, second])
    assert join([first]) is first
    assert not first.allows_unequal(1) and not first.shorten([1]) and first.shorten([0])


def test_rows_of_keys_and_values_are_joined() -> None:
    joined = join([rows_of(DynamicLayer(), 3), rows_of(DynamicLayer(), 2)])
    assert joined.mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert joined.cache.layers[0].keys[1, 0, :, 0].tolist() == [0, 1, 1]
    assert joined.shorten([1, 0]) and joined.mask.tolist() == [[0, 1, 1], [0, 1, 1]]


def test_the_cache_has_the_name_that_models_of_this_version_of_transformers_expect() -> None:
    forward = inspect.signature(FastVlmForConditionalGeneration.forward)
    assert cache_name() in forward.parameters and ("cache" in forward.parameters) == (cache_name() == "cache")
