"""Boxes as input embeddings, captured states, and the check of the markers in a conversation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.location_passes import captured_states, check_markers, region_inputs
from sam4mllm.mllm.locations import LocationSettings, add_locations
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, Location, Turn
from sam4mllm.testing import save_tiny_mllm

FAMILIES = ("fast_vlm", "gemma4", "qwen3_5", "minicpmv4_6")
BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.5, 1.0, 0.7]])


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    base = load_mllm(str(save_tiny_mllm(request.param, tmp_path_factory.mktemp(request.param), seed=1)))
    return attach_lora(base, {"r": 2}, 0, locations=LocationSettings())


def regions(*positions: tuple[int, int, int], shape: tuple[int, int] = (2, 5)) -> torch.Tensor:
    """Boxes (B, T, 4), NaN but for those of `BOXES` with index `box` at (row, column, box)."""
    boxes = torch.full((*shape, 4), torch.nan)
    for row, column, box in positions:
        boxes[row, column] = BOXES[box]
    return boxes


def run(mllm: Mllm, boxes: torch.Tensor | None, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The states and the logits of two rows with a location token each."""
    token = mllm.location_id
    ids = torch.tensor([[5, token, 7, 8, 9], [9, 8, 7, token, 5]])
    with captured_states(mllm) as captured, region_inputs(mllm, boxes):
        logits = mllm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits
    assert captured.states is not None
    return captured.states, logits


def test_states_are_those_of_which_the_output_layer_makes_logits(mllm: Mllm) -> None:
    mllm.model.eval()
    states, logits = run(mllm, None)
    assert states.shape[:2] == (2, 5) and states.requires_grad
    made = mllm.model.get_output_embeddings()(states)
    # Gemma bounds its logits by a tanh afterwards, which keeps their order.
    assert torch.equal(made.argmax(-1), logits.argmax(-1))
    last, _ = run(mllm, None, logits_to_keep=1)
    assert torch.allclose(last[:, -1], states[:, -1], atol=1e-5)


def test_boxes_replace_the_embeddings_of_their_positions_alone(mllm: Mllm) -> None:
    mllm.model.eval()
    plain, _ = run(mllm, None)
    first, _ = run(mllm, regions((0, 1, 0)))
    assert torch.allclose(first[1], plain[1], atol=1e-5) and torch.allclose(first[0, 0], plain[0, 0], atol=1e-5)
    assert (first[0, 1:] - plain[0, 1:]).abs().amax(-1).min() > 1e-4
    both, _ = run(mllm, regions((0, 1, 0), (1, 3, 1)))
    assert torch.allclose(both[0], first[0], atol=1e-5) and not torch.allclose(both[1, 3:], plain[1, 3:], atol=1e-4)
    # The embedding is the encoder's, and nothing is left behind after the block.
    with region_inputs(mllm, regions((0, 1, 0), shape=(1, 2))):
        embedded = mllm.model.get_input_embeddings()(torch.tensor([[5, mllm.location_id]]))
    assert torch.allclose(embedded[0, 1], mllm.location_heads.encode_boxes(BOXES[:1])[0])
    assert torch.allclose(run(mllm, None)[0], plain, atol=1e-6)


def test_gradients_reach_encoder_decoder_and_the_rows_of_the_token(mllm: Mllm) -> None:
    mllm.model.zero_grad()
    states, _ = run(mllm, regions((0, 1, 0)))
    mllm.location_heads.decode_boxes(states[1, 3:4]).sum().backward(retain_graph=True)
    heads = mllm.location_heads
    # The second row's token has its trained embedding, and no box.
    rows = mllm.model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    assert rows.grad.any() and heads.box_decoder[0].weight.grad.any()
    assert heads.location_encoder[0].weight.grad is None or not heads.location_encoder[0].weight.grad.any()
    states[0].sum().backward()
    assert heads.location_encoder[0].weight.grad.any()


def test_boxes_need_heads_and_a_pass_of_their_shape(fast_vlm: str) -> None:
    mllm = load_mllm(fast_vlm)
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ModelError, match="has no location heads"), region_inputs(mllm, regions((0, 1, 0))):
        pass
    add_locations(mllm, LocationSettings(), 0)
    with pytest.raises(ModelError, match="did not embed its tokens"), region_inputs(mllm, regions((0, 1, 0))):
        mllm.model(input_ids=ids)


def asked(text: str, *starts: int, role: Any = "user", supervised: bool = False) -> Conversation:
    turn = Turn(role, text, supervised, tuple(Location((0, 0, 1, 1), start) for start in starts))
    return Conversation(None, (turn,) if role == "user" else (Turn("user", "?"), turn))


MARKED = f"is {LOCATION_TOKEN} left of {LOCATION_TOKEN}?"
STARTS = (3, 3 + len(LOCATION_TOKEN) + len(" left of "))


def test_every_marker_has_its_location(fast_vlm: str) -> None:
    mllm = load_mllm(fast_vlm)
    # Plain text for a model without the token.
    check_markers(mllm.processor, [asked(MARKED)])
    processor = add_locations(mllm, LocationSettings(), 0).processor
    check_markers(processor, [asked(MARKED, *STARTS), asked("?"), asked(MARKED, role="assistant")])
    for conversation in (asked(MARKED), asked(MARKED, 3), asked(MARKED, role="assistant", supervised=True)):
        with pytest.raises(DataError, match=r"holds '<location>', which the model reads as a control token") as error:
            check_markers(processor, [conversation])
        assert error.value.kind == "phrase"
    with pytest.raises(DataError, match=r"'<location>' at \[3, 22\], but locations for \[3, 22, 30\]"):
        check_markers(processor, [asked(MARKED, *STARTS, 30)])
