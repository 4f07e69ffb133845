"""LocationHeads: float32 whatever autocast and the states' dtype are, and a projection that begins as SAM's padding."""

from __future__ import annotations

import torch

from sam4mllm.mllm.location_heads import LocationHeads


def test_the_heads_compute_in_float32_under_autocast() -> None:
    heads = LocationHeads(8, sam_tokens=2, sam_width=4)
    states, boxes = torch.randn(3, 8), torch.rand(3, 4)
    expected = heads.decode_boxes(states), heads.encode_boxes(boxes), heads.sam_tokens(states)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = heads.decode_boxes(states), heads.encode_boxes(boxes), heads.sam_tokens(states)
    assert [tuple(each.shape) for each in outputs] == [(3, 4), (3, 8), (3, 2, 4)]
    for output, same in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float32 and torch.equal(output, same)
    half = states.bfloat16()
    assert torch.equal(heads.decode_boxes(half), heads.decode_boxes(half.float()))


def test_no_location_is_an_empty_batch_without_nan() -> None:
    heads = LocationHeads(8)
    assert heads.decode_boxes(torch.empty(0, 8)).shape == (0, 4)
    total = heads.sam_tokens(torch.empty(0, 8)).sum() + heads.encode_boxes(torch.empty(0, 4)).sum()
    total.backward()
    gradients = [weight.grad for weight in heads.prompt_projection.parameters()]
    assert total == 0 and all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_projection_begins_as_not_a_point_and_can_be_trained() -> None:
    heads, not_a_point = LocationHeads(8, sam_tokens=3, sam_width=4), torch.arange(4.0)
    heads.begin_as_box_prompt(not_a_point)
    tokens = heads.sam_tokens(torch.randn(5, 8))
    assert torch.equal(tokens, not_a_point.expand(5, 3, 4))
    tokens.square().sum().backward()
    assert heads.prompt_projection[-1].weight.grad.any() and heads.prompt_offset.grad.any()
