"""The check of a family's locations (the method pix2emb): training, the states while decoding, and reloading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub
from typing import Any

from sam4mllm.doctor.family_under_test import FamilyUnderTest, located_text
from sam4mllm.doctor.result import expect
from sam4mllm.mllm.constrained_engine import ConstrainedEngine
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.location_passes import captured_states, region_inputs
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.answer_form import LocationForm
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, Turn
from sam4mllm.training.batch_locations import LOCATIONS
from sam4mllm.training.collator import Collator

_STEPS = 6
_TOLERANCE = 1e-4


def locations(family: FamilyUnderTest) -> None:
    """Check that answers can have locations, and questions regions.

    1. The loss of text, boxes and cycles falls.
    2. The states of a batch of generated answers are those of a pass over the complete conversations.
    3. The model that is loaded from the run folder has the same states and heads.
    """
    training = family.train("locations", _STEPS, locations=LocationSettings(sam_width=8))
    mllm, losses = training.mllm, training.losses
    expect(all(map(math.isfinite, losses)), f"the losses are {losses}")
    first, last = losses[0], min(losses[-2:])
    expect(last < 0.75 * first, f"the loss goes from {first:.2f} to {last:.2f} in {len(losses)} steps")
    asked = [Conversation(each.image, each.turns[:1]) for each in family.located_conversations]
    replies = ConstrainedEngine(TransformersEngine(mllm, 2), LocationForm()).generate_located(asked, 6)
    counts = [reply.text.count(LOCATION_TOKEN) for reply in replies]
    expect(any(counts), f"the answers have no location token: {[reply.text for reply in replies]}")
    expect(counts == [len(reply.locations) for reply in replies], f"{counts} location tokens have other locations")
    generated = [location for reply in replies for location in reply.locations]
    reloaded = load_mllm(str(family.base), training.run.path, device=family.device)
    for what, model in (("a pass over the answers", mllm), ("the loaded model", reloaded)):
        boxes, sam_tokens = _teacher_forced(model, asked, replies)
        pairs = zip(generated, boxes, sam_tokens, strict=True)
        off = max(
            max(float((each.sam_tokens - tokens).abs().max()), *map(abs, map(sub, each.box, box)))
            for each, box, tokens in pairs
        )
        expect(off < _TOLERANCE, f"the locations of generated answers and of {what} differ by {off:.1e}")


def _teacher_forced(mllm: Mllm, asked: Sequence[Conversation], replies: Sequence[Reply]) -> tuple[list[Any], Any]:
    """Return the boxes and the prompt tokens (N, K, C) of a pass over the questions with the generated answers."""
    import torch

    from sam4mllm.mllm.location_heads import ordered

    heads = mllm.location_heads
    assert heads is not None, "attached by training"
    states = []
    for conversation, reply in zip(asked, replies, strict=True):
        answer = located_text([location.box for location in reply.locations])
        if not reply.locations:
            continue
        turn = Turn("assistant", answer.text, supervised=True, locations=answer.locations)
        batch = Collator(mllm)([Conversation(conversation.image, (*conversation.turns, turn))])
        located = batch.pop(LOCATIONS)
        batch = {name: value.to(mllm.device) for name, value in batch.items()}
        regions = located.region_grid(*batch["input_ids"].shape)
        with torch.no_grad(), captured_states(mllm) as captured, region_inputs(mllm, regions):
            mllm.model(**batch)
        assert captured.states is not None, "the model was run"
        states.append(captured.states[0, located.positions[:, 1]])
    with torch.no_grad():
        boxes = ordered(heads.decode_boxes(torch.cat(states))).clamp(0, 1).tolist()
        return boxes, heads.sam_tokens(torch.cat(states)).cpu()
