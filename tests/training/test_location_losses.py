"""The losses of locations have the values of their definitions, and use all weights of every batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from sam4mllm.data.masks import decode
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.location_passes import captured_states, region_inputs
from sam4mllm.prompts.conversation import Conversation, Turn, training_conversation
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.mask_decoder import MaskTrainer
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from sam4mllm.training.batch_locations import LOCATIONS
from sam4mllm.training.collator import Collator
from sam4mllm.training.isolation import isolate_branches
from sam4mllm.training.location_losses import LocationLosses, LocationWeights, _iou, _mask_losses
from sam4mllm.training.loss_parts import LossParts
from sam4mllm.training.trainer import check_mask_loss
from tests.training.helpers import make_recipe
from tests.training.located import PIX2EMB, gradients, located_conversations, located_mllm, location


@pytest.fixture
def sam() -> SegmentAnything:
    return SegmentAnything(tiny_sam())


@pytest.fixture
def mllm(tmp_path: Any, fast_vlm: str, sam: SegmentAnything) -> Mllm:
    mllm = located_mllm(fast_vlm, make_recipe(tmp_path, fast_vlm, PIX2EMB, "lora.lora_dropout=0"), sam)
    isolate_branches(mllm.model)
    # The last layer of the projection begins at zero; with it, masks would not depend on the states.
    assert mllm.location_heads is not None
    with torch.no_grad():
        for weight in mllm.location_heads.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return mllm


def loss_of(mllm: Mllm, losses: LocationLosses, batch: dict[str, Any], factor: float = 1.0) -> torch.Tensor:
    batch = dict(batch)
    with losses.added(batch.pop(LOCATIONS, None), tuple(batch["input_ids"].shape), None, factor):
        loss: torch.Tensor = mllm.model(**batch).loss
    return loss


@pytest.mark.parametrize("prompt", ["both", "embedding", "box"])
@pytest.mark.parametrize("cycle", [True, False])
def test_the_loss_is_the_sum_of_its_definitions(mllm: Mllm, sam: SegmentAnything, prompt: Any, cycle: bool) -> None:
    method = MethodSection(
        name="pix2emb", prompt=prompt, cycle=cycle, box_weight=0.7, giou_weight=0.5, cycle_weight=3, mask_weight=2
    )
    weights = LocationWeights.of(method)
    assert weights is not None
    batch = Collator(mllm)(located_conversations())
    total = loss_of(mllm, LocationLosses(mllm, weights, sam, 0), batch)

    locations, heads = batch.pop(LOCATIONS), mllm.location_heads
    assert heads is not None
    regions = region_inputs(mllm, locations.region_grid(*batch["input_ids"].shape))
    with torch.no_grad(), captured_states(mllm) as captured, regions:
        text = mllm.model(**batch).loss
    assert captured.states is not None
    with torch.no_grad():
        states = captured.states[tuple(locations.positions.T)]
        decoded, true = heads.decode_boxes(states), locations.boxes
        l1 = functional.l1_loss(decoded, true)
        gious = [giou(box.tolist(), target.tolist()) for box, target in zip(decoded, true, strict=True)]
        expected = text + 0.7 * (2 * l1 + 0.5 * np.mean([1 - each for each in gious]))
        if cycle:
            boxes = torch.cat([true, locations.region_boxes])
            expected += 3 * functional.l1_loss(heads.decode_boxes(heads.encode_boxes(boxes)), boxes)
            expected += 3 * functional.mse_loss(heads.encode_boxes(decoded), states)
        if prompt != "box":
            expected += 2 * np.mean(masks_loss(sam, heads, states, decoded, locations, with_box=prompt == "both"))
    torch.testing.assert_close(total.detach(), expected.to(total.dtype), rtol=1e-5, atol=1e-5)


def giou(box: list[float], other: list[float]) -> float:
    """GIoU by the formula of its paper; a box whose corners are out of order has no extent."""
    x1, y1 = box[:2]
    x2, y2 = max(x1, box[2]), max(y1, box[3])
    a1, b1, a2, b2 = other
    overlap = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
    union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap
    hull = (max(x2, a2) - min(x1, a1)) * (max(y2, b2) - min(y1, b1))
    return overlap / union - (hull - union) / hull


def masks_loss(
    sam: SegmentAnything, heads: Any, states: torch.Tensor, decoded: torch.Tensor, locations: Any, *, with_box: bool
) -> list[float]:
    """Cross-entropy and dice of each location's mask, one after the other, on the cells of its image."""
    losses = []
    for number, (row, rle) in enumerate(zip(locations.positions[:, 0], locations.rles, strict=True)):
        image = locations.images[row]
        height, width = image.shape[:2]
        corners = decoded[number].clamp(0, 1)
        box = torch.cat([torch.minimum(corners[:2], corners[2:]), torch.maximum(corners[:2], corners[2:])])
        boxes = (box * torch.tensor([width, height, width, height]))[None] if with_box else None
        tokens = heads.sam_tokens(states[number : number + 1])
        logits = sam.decode_embedded(sam.embed([image]), torch.tensor([0]), boxes, tokens).low_res_logits[0]
        rows, columns = sam.frame.coverage((width, height), 32)
        target = rows @ torch.from_numpy(decode(rle)).float() @ columns.T
        h, w = int((rows.sum(1) > 0).sum()), int((columns.sum(1) > 0).sum())
        logits, target = logits[:h, :w], target[:h, :w]
        shares = logits.sigmoid()
        dice = 1 - (2 * (shares * target).sum() + 1) / (shares.sum() + target.sum() + 1)
        losses.append(float(functional.binary_cross_entropy_with_logits(logits, target) + dice))
    return losses


@pytest.mark.parametrize("train_mask_decoder", [False, True])
def test_a_batch_without_locations_touches_every_weight(
    mllm: Mllm, sam: SegmentAnything, train_mask_decoder: bool
) -> None:
    losses = LocationLosses(mllm, LocationWeights(train_mask_decoder=train_mask_decoder), sam, 0)
    chat = training_conversation(np.zeros((64, 64, 3), np.uint8), [("Where is a?", "No object found.")])
    batch = Collator(mllm)([chat])
    assert LOCATIONS not in batch
    plain = mllm.model(**batch).loss
    loss = loss_of(mllm, losses, batch)
    assert torch.equal(loss, plain)
    loss.backward()
    trained = {name for name, weight in mllm.model.named_parameters() if weight.requires_grad}
    of_heads = [name for name in trained if "location_heads" in name]
    assert (
        len(of_heads) == 12 and any("location_losses.masks.decoder" in name for name in trained) is train_mask_decoder
    )
    assert gradients(mllm.model).keys() == trained
    assert not any(gradients(mllm.model)[name].any() for name in of_heads)


def test_gradients_reach_every_head_and_the_trained_decoder(mllm: Mllm, sam: SegmentAnything) -> None:
    losses = LocationLosses(mllm, LocationWeights(train_mask_decoder=True), sam, 0)
    loss_of(mllm, losses, Collator(mllm)(located_conversations())).backward()
    grads = gradients(mllm.model)
    assert all(grad.isfinite().all() for grad in grads.values())
    without = [name for name, grad in grads.items() if "location" in name and not grad.any()]
    # The predicted IoU has no loss, and the networks of the masks that it does not choose have none.
    assert all("iou_prediction_head" in name or "hypernetworks_mlps" in name for name in without), without
    assert sum("location_losses" in name for name in grads) > 20
    assert any("trainable_tokens" in name and grad.any() for name, grad in grads.items())
    # The decoded box beside the tokens passes no gradient of the mask to the box decoder.
    mllm.model.zero_grad()
    only_masks = LocationWeights(box=0, cycle=0)
    loss_of(mllm, LocationLosses(mllm, only_masks, sam, 0), Collator(mllm)(located_conversations())).backward()
    grads = gradients(mllm.model)
    assert not any(grad.any() for name, grad in grads.items() if "box_decoder" in name)
    assert any(grad.any() for name, grad in grads.items() if "prompt_projection" in name)


def test_boxes_in_text_train_a_decoder_beside_the_adapter(tmp_path: Any, fast_vlm: str) -> None:
    mllm = located_mllm(fast_vlm, make_recipe(tmp_path, fast_vlm, "lora.lora_dropout=0"), SegmentAnything(tiny_sam()))
    weights = LocationWeights.of(MethodSection(name="ppg", box_loss=0.5))
    assert weights is not None and LocationWeights.of(MethodSection()) is None
    losses = LocationLosses(mllm, weights, None, 0)
    box = Box(0.1, 0.2, 0.5, 0.7)
    answer = Turn("assistant", "[1,2,5,7]", True, (location(box, 0),))
    batch = Collator(mllm)([Conversation(np.zeros((64, 64, 3), np.uint8), (Turn("user", "a?"), answer))])
    loss = loss_of(mllm, losses, batch)
    row, column = batch.pop(LOCATIONS).positions[0]
    with torch.no_grad(), captured_states(mllm) as captured:
        text = mllm.model(**batch).loss
    assert captured.states is not None and losses.box_decoder is not None
    decoded = losses.box_decoder(captured.states[row, column])
    l1 = (decoded - torch.tensor(box)).abs().mean()
    expected = text + 0.5 * (2 * l1 + 0.8 * (1 - giou(decoded.tolist(), list(box))))
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in losses.box_decoder.parameters())


def test_the_hook_changes_no_other_forward_pass(mllm: Mllm, sam: SegmentAnything) -> None:
    batch = Collator(mllm)(located_conversations())
    del batch[LOCATIONS]
    before = mllm.model(**batch).loss
    LocationLosses(mllm, LocationWeights(), sam, 0)
    assert torch.equal(mllm.model(**batch).loss, before)


def test_what_cannot_be_trained_is_refused(mllm: Mllm, fast_vlm: str, sam: SegmentAnything) -> None:
    with pytest.raises(ModelError, match="the segmenter is a BoxSegmenter"):
        LocationLosses(mllm, LocationWeights(), BoxSegmenter(), 0)
    with pytest.raises(ValueError, match="needs a segmenter"):
        LocationLosses(mllm, LocationWeights(), None, 0)
    with pytest.raises(ModelError, match="the model has no location heads"):
        LocationLosses(load_mllm(fast_vlm), LocationWeights(mask=0), sam, 0)


def test_padding_and_empty_selections_have_no_loss(sam: SegmentAnything) -> None:
    none = torch.zeros(0, 32, 32)
    assert [float(part) for part in _mask_losses(none, none, none.bool())] == [0, 0]
    shares, inside = MaskTrainer(sam).targets([np.ones((48, 64), dtype=bool)], torch.device("cpu"))
    logits = torch.where(inside, 20.0, -20.0)
    elsewhere = torch.where(inside, 20.0, 20.0)
    for each in (logits, elsewhere):
        cross_entropy, dice = _mask_losses(each, shares, inside)
        assert 0 <= cross_entropy < 1e-6 and 0 <= dice < 1e-6
    assert _iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.5, 0, 1.5, 1]])).item() == pytest.approx(1 / 3)
    assert _iou(torch.zeros(1, 4), torch.tensor([[0.0, 0, 1, 1]])).item() == 0


def test_parts_are_means_of_all_terms_since_the_last_log() -> None:
    parts = LossParts(torch.device("cpu"))
    parts.add(2, box_l1=torch.tensor(1.0))
    parts.add_text(torch.tensor(4.0))
    parts.discard_step()
    for sums, count in ((3.0, 2), (5.0, 2), (0.0, 0)):
        parts.add(count, box_l1=torch.tensor(sums))
        parts.add_text(torch.tensor(1.5))
    parts.end_step()
    parts.add_text(torch.tensor(0.5))
    # Two steps in each of two processes, whose texts' losses are shares of the step's mean, or means of their own.
    assert parts.means(lambda total: 2 * total, text_is_divided=True) == {"box_l1": 2.0, "text_loss": 5.0}
    parts.add_text(torch.tensor(0.5))
    assert parts.means(lambda total: 2 * total, text_is_divided=False) == {"text_loss": 0.5}
    assert parts.means(lambda total: total, text_is_divided=True) == {}


def test_a_segmenter_without_gradients_is_refused_before_the_model_is_loaded(tmp_path: Any) -> None:
    def check(*overrides: str) -> None:
        check_mask_loss(make_recipe(tmp_path, "none", *overrides), BoxSegmenter())

    with pytest.raises(ModelError, match=r"is a BoxSegmenter: give a .pth file, or set method.prompt: box or method.m"):
        check(PIX2EMB)
    for allowed in ("method=ppg", "method={name: pix2emb, prompt: box}", "method={name: pix2emb, mask_weight: 0}"):
        check(allowed)
