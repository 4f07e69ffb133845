"""Trained rows in the output of a layer: the values and gradients of peft, without a copy of the matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer

from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.lora import adapter_disabled, attach_lora
from sam4mllm.mllm.token_rows import TokenRows
from sam4mllm.testing import save_tiny_mllm


def layers(mllm: Mllm) -> list[TokenRows]:
    return [module for module in mllm.model.modules() if isinstance(module, TrainableTokensLayer)]


def computed(mllm: Mllm) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, ...]]]:
    """The outputs of both layers, the gradients of the rows, and the shapes of what the backward pass keeps."""
    model = mllm.model
    model.zero_grad()
    embed, output = model.get_input_embeddings(), model.get_output_embeddings()
    ids = torch.tensor([[5, mllm.location_id, 7], [mllm.location_id, mllm.location_id, 3]])
    states = torch.randn(2, 3, embed.weight.shape[1], generator=torch.Generator().manual_seed(0), dtype=mllm.dtype)
    states.requires_grad_(True)
    bases = {layer.get_base_layer().weight.untyped_storage().data_ptr() for layer in layers(mllm)}
    shapes: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in bases:
            shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = [embed(ids), output(states)]
    sum(each.float().square().sum() for each in outputs).backward()
    rows = {id(row): row for layer in layers(mllm) for row in layer.trainable_tokens_delta.parameters()}
    return [*outputs, states.grad], [row.grad for row in rows.values()], shapes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["fast_vlm", "gemma3"])
def test_values_and_gradients_are_those_of_peft(family: str, dtype: Any, tmp_path: Path) -> None:
    base = load_mllm(str(save_tiny_mllm(family, tmp_path, seed=1)), dtype=dtype)
    mllm = attach_lora(base, {"r": 2}, 0, locations=LocationSettings())
    for layer in layers(mllm):
        for row in layer.trainable_tokens_delta.parameters():
            row.data = torch.randn(row.shape, generator=torch.Generator().manual_seed(2))
    assert [type(layer) for layer in layers(mllm)] == [TokenRows] * 2
    ours, gradients, shapes = computed(mllm)
    for layer in layers(mllm):
        layer.__class__ = TrainableTokensLayer
    theirs, expected, of_peft = computed(mllm)
    rows = len(mllm.model.get_input_embeddings().weight)
    assert any(rows in shape for shape in of_peft) and not any(rows in shape for shape in shapes)
    assert len(gradients) == (2 if family == "fast_vlm" else 1)
    tolerance = {"rtol": 0.02, "atol": 0.05} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 1e-4}
    for one, other in zip([*ours, *gradients], [*theirs, *expected], strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)
    assert torch.equal(ours[0], theirs[0]), "embeddings are not rounded"


def test_a_disabled_adapter_has_the_rows_of_the_base(fast_vlm: str) -> None:
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 2}, 0, locations=LocationSettings())
    ids = torch.tensor([[mllm.location_id]])
    before = mllm.model.get_input_embeddings()(ids)
    for layer in layers(mllm):
        for row in layer.trainable_tokens_delta.parameters():
            row.data += 1
    assert not torch.allclose(mllm.model.get_input_embeddings()(ids), before)
    with adapter_disabled(mllm):
        assert torch.equal(mllm.model.get_input_embeddings()(ids), before)
    # Rows that the recipe trains by itself stay peft's.
    plain = attach_lora(load_mllm(fast_vlm), {"r": 2, "trainable_token_indices": [5]}, 0)
    assert [type(layer) for layer in layers(plain)] == [TrainableTokensLayer]
