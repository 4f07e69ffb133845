"""Locations are found at their own tokens, in turns and in branches, whatever else the rows hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.locations import LocationSettings, add_locations
from sam4mllm.prompts.conversation import (
    LOCATION_TOKEN,
    Conversation,
    Location,
    Turn,
    isolated_conversation,
    training_conversation,
)
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.training.batch_locations import LOCATIONS, BatchLocations, located_tokens
from sam4mllm.training.collator import Collator
from sam4mllm.training.isolation import BRANCH_IDS
from tests.training.located import located_conversations, marked

IMAGE = np.full((64, 48, 3), 90, dtype=np.uint8)
A, B, C = Box(0.1, 0.2, 0.5, 0.6), Box(0, 0, 1, 1), Box(0.25, 0.5, 0.75, 0.875)


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl", "llava_onevision"])
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = load_mllm(str(save_tiny_mllm(request.param, tmp_path_factory.mktemp("mllm"))))
    return add_locations(loaded, LocationSettings(1, 16), 0)


def found(mllm: Any, conversations: list[Conversation]) -> tuple[dict[str, Any], BatchLocations]:
    batch = Collator(mllm)(conversations)
    return batch, batch[LOCATIONS]


def check_tokens(mllm: Any, batch: dict[str, Any], locations: BatchLocations) -> None:
    """Each location token of the batch has exactly one location."""
    places = torch.cat([locations.positions, locations.region_positions]).tolist()
    assert sorted(map(tuple, places)) == sorted(map(tuple, (batch["input_ids"] == mllm.location_id).nonzero().tolist()))


def test_each_location_token_has_its_box_in_turns(mllm: Any) -> None:
    first = training_conversation(
        IMAGE, [("Where is a?", marked("**", [A, B])), (marked("At * is", [C]), "a cup"), ("b", "No object found.")]
    )
    second = training_conversation(IMAGE, [(marked("What is at * and *?", [B, A]), marked("a * thing", [C], (48, 64)))])
    batch, locations = found(mllm, [first, training_conversation(IMAGE, [("Where?", "no")]), second])
    check_tokens(mllm, batch, locations)
    assert locations.positions[:, 0].tolist() == [0, 0, 2] and locations.region_positions[:, 0].tolist() == [0, 2, 2]
    torch.testing.assert_close(locations.boxes, torch.tensor([A, B, C]))
    torch.testing.assert_close(locations.region_boxes, torch.tensor([C, B, A]))
    assert [rle is not None for rle in locations.rles] == [False, False, True] and locations.masks == 1
    assert locations.positions[1, 1] == locations.positions[0, 1] + 1
    assert (batch["labels"][tuple(locations.positions.T)] == mllm.location_id).all()
    assert (batch["labels"][tuple(locations.region_positions.T)] != mllm.location_id).all()
    grid = locations.region_grid(*batch["input_ids"].shape)
    assert grid is not None and torch.equal(~grid.isnan().any(-1), grid.isfinite().all(-1))
    assert torch.equal(grid.isfinite().all(-1).nonzero(), locations.region_positions)
    torch.testing.assert_close(grid[tuple(locations.region_positions.T)], locations.region_boxes)


def test_branches_do_not_share_the_location_of_a_question(mllm: Any) -> None:
    """Both questions have equal tokens until behind the location, which means another box in each."""
    question = "What is at *? Name it."
    conversation = isolated_conversation(
        IMAGE,
        [
            [(marked(question, [A]), "a red cup")],
            [(marked(question, [B]), "a red cup")],
            [(marked(question, [C]), marked("a cup *", [A]))],
        ],
    )
    batch, locations = found(mllm, [conversation])
    check_tokens(mllm, batch, locations)
    torch.testing.assert_close(locations.region_boxes, torch.tensor([A, B, C]))
    branches = batch[BRANCH_IDS][tuple(locations.region_positions.T)].tolist()
    assert branches == [1, 2, 3]
    assert batch[BRANCH_IDS][tuple(locations.positions.T)].tolist() == [3]
    # Up to the location, the question is shared by all.
    text = mllm.processor.tokenizer.decode(batch["input_ids"][0][batch[BRANCH_IDS][0] == 0])
    assert text.rstrip().endswith("What is at")


def test_isolated_conversations_have_the_locations_of_their_branches_alone(mllm: Any) -> None:
    packed = located_conversations()
    batch, locations = found(mllm, packed)
    check_tokens(mllm, batch, locations)
    _, alone = found(mllm, [branch for each in packed for branch in each.branches])
    torch.testing.assert_close(locations.boxes, alone.boxes)
    torch.testing.assert_close(locations.region_boxes, alone.region_boxes)
    assert locations.rles == alone.rles and len(locations.images) == len(packed)


def test_boxes_in_text_are_found_at_the_token_that_opens_them(mllm: Any) -> None:
    text = "[001,002,003,004] +(1,1); [005,006,007,008]"
    answer = Turn("assistant", text, True, (Location(A, 0), Location(B, text.rindex("["))))
    shown = Turn("assistant", "[1,1,2,2]", False, (Location(C, 0),))
    batch, locations = found(mllm, [Conversation(IMAGE, (Turn("user", "a?"), shown, Turn("user", "b?"), answer))])
    tokens = [mllm.processor.tokenizer.decode(batch["input_ids"][row, column]) for row, column in locations.positions]
    assert len(tokens) == 2 and all("[" in token for token in tokens)
    torch.testing.assert_close(locations.boxes, torch.tensor([A, B]))
    before = mllm.processor.tokenizer.decode(batch["input_ids"][0, : int(locations.positions[1, 1])])
    assert before.endswith("+(1,1); ") or before.endswith("+(1,1);")


def test_a_batch_without_locations_has_none(mllm: Any) -> None:
    assert LOCATIONS not in Collator(mllm)([training_conversation(IMAGE, [("Where is a?", "No object found.")])])
    empty = BatchLocations.of([], [])
    assert empty.boxes.shape == (0, 4) and empty.positions.shape == (0, 2) and empty.region_grid(1, 2) is None


def test_a_location_token_that_is_not_a_location_is_an_error(mllm: Any) -> None:
    with pytest.raises(DataError, match=LOCATION_TOKEN):
        Collator(mllm)([training_conversation(IMAGE, [(f"the {LOCATION_TOKEN} sign", "[1,2]")])])


def test_a_template_that_changes_texts_is_an_error(mllm: Any) -> None:
    turns = (Turn("user", "a?"), Turn("assistant", "[1,2,3,4]", True, (Location(A, 0),)))

    def spaced(*args: Any, **options: Any) -> str:
        text: str = mllm.processor.apply_chat_template(*args, **options)
        return text.replace(",", ", ")

    processor = SimpleNamespace(apply_chat_template=spaced, tokenizer=mllm.processor.tokenizer)
    with pytest.raises(ModelError, match=r"does not render the text '\[1,2,3,4\]' as it is"):
        located_tokens(Conversation(IMAGE, turns), [], processor, mllm.location_id)
