"""Locations of generated tokens, and boxes in questions: equal to a teacher-forced pass, whatever the batch is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box
from sam4mllm.mllm import transformers_engine
from sam4mllm.mllm.decoding import reply_of
from sam4mllm.mllm.engine import LocatingEngine, Reply
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.location_passes import captured_states, region_inputs
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.mllm.server_engine import ServerEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, Location, Turn
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion
from sam4mllm.testing import save_tiny_mllm

# Recurrent states with M-RoPE, a sliding window with tied embeddings, no `logits_to_keep`, and attention to images.
FAMILIES = ("fast_vlm", "qwen3_5", "gemma4", "minicpmv4_6", "molmo2")
TOLERANCE = 1e-4
LEFT, RIGHT = Box(0.1, 0.2, 0.4, 0.9), Box(0.5, 0.0, 1.0, 0.3)


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    base = load_mllm(str(save_tiny_mllm(request.param, tmp_path_factory.mktemp(request.param), seed=1)))
    tuned = attach_lora(base, {"r": 2}, 0, locations=LocationSettings(sam_tokens=2, sam_width=4))
    generator = torch.Generator().manual_seed(1)
    for weight in tuned.model.parameters():
        if weight.requires_grad:
            # Heads whose outputs are far apart, so that a state of another token is seen.
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    tuned.model.eval()
    return tuned


def asked(image: Any, text: str, *boxes: Box, before: tuple[Turn, ...] = ()) -> Conversation:
    starts = [index for index in range(len(text)) if text.startswith(LOCATION_TOKEN, index)]
    locations = tuple(Location(box, start) for box, start in zip(boxes, starts, strict=True))
    return Conversation(image, (*before, Turn("user", text, locations=locations)))


def questions() -> list[Conversation]:
    """Questions about two images: equal ones with equal and other boxes, one with two, one without, and a history."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (30, 90))]
    one = f"What is at {LOCATION_TOKEN}?"
    former = (Turn("user", one, locations=(Location(LEFT, 11),)), Turn("assistant", f"a ring {LOCATION_TOKEN}"))
    return [
        asked(images[0], one, LEFT),
        asked(images[0], one, RIGHT),
        asked(images[1], f"Is {LOCATION_TOKEN} left of {LOCATION_TOKEN}?", LEFT, RIGHT),
        asked(images[0], one, LEFT),
        asked(images[0], "Where is it?"),
        asked(images[0], "And where is it?", before=former),
    ]


class Script:
    """A constraint by a script: each entry is a forced token, or the tokens of which one is chosen."""

    def __init__(self, *entries: int | tuple[int, ...]) -> None:
        self.left = list(entries)

    def forced(self) -> list[int]:
        end = next((index for index, entry in enumerate(self.left) if isinstance(entry, tuple)), len(self.left))
        return [entry for entry in self.left[:end] if isinstance(entry, int)]

    def restrict(self, logits: torch.Tensor) -> None:
        kept = {token: logits[token].clone() for token in self.left[0]}  # type: ignore[union-attr]
        logits.fill_(-torch.inf)
        for token, logit in kept.items():
            logits[token] = logit

    def accept(self, token: int) -> None:
        entry = self.left.pop(0)
        assert token in (entry if isinstance(entry, tuple) else (entry,))


def scripts(mllm: Mllm) -> list[Any]:
    """Answers with location tokens that are chosen, forced among others, and forced before a forced end."""
    token, end, (a, b) = (
        mllm.location_id,
        mllm.end_ids[0],
        mllm.processor.tokenizer.encode("xy", add_special_tokens=False),
    )
    return [
        lambda: Script((a, b), token, token, end),
        lambda: Script(token, end),
        lambda: Script((token,), a, token, (a, b), token, end),
        lambda: Script((a, b), (a, b), (token,), (end,)),
        lambda: Script((a, b), a, end),
        lambda: Script(b, a, token, (a, b), end),
    ]


def tokens_of(mllm: Mllm, reply: Reply) -> list[int]:
    return mllm.processor.tokenizer.encode(reply.text, add_special_tokens=False)


def teacher_forced(mllm: Mllm, conversation: Conversation, answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) and prompt tokens (N, K, C) of one pass over the prompt and the whole answer."""
    messages = [messages_with_image(conversation)]
    inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
    prompt = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([list(answer)])], dim=1)
    for name, value in list(inputs.items()):
        if value.shape == inputs["input_ids"].shape and name != "input_ids":
            filler = torch.ones if name == "attention_mask" else torch.zeros
            inputs[name] = torch.cat([value, filler((1, len(answer)), dtype=value.dtype)], dim=1)
    inputs["input_ids"] = ids
    boxes = torch.full((*ids.shape, 4), torch.nan)
    found = (ids[0, :prompt] == mllm.location_id).nonzero()[:, 0].tolist()
    meant = [
        box
        for turn in conversation.turns
        for box in ([each.box for each in turn.locations] or [None] * turn.text.count(LOCATION_TOKEN))
    ]
    for position, box in zip(found, meant, strict=True):
        if box is not None:
            boxes[0, position] = torch.tensor(box)
    with torch.no_grad(), captured_states(mllm) as captured, region_inputs(mllm, None if not found else boxes):
        mllm.model(**inputs)
    assert captured.states is not None and mllm.location_heads is not None
    states = captured.states[0, prompt:][torch.tensor(answer) == mllm.location_id]
    with torch.no_grad():
        return mllm.location_heads.decode_boxes(states), mllm.location_heads.sam_tokens(states)


def assert_located(mllm: Mllm, reply: Reply, conversation: Conversation, tokens: Sequence[int] | None = None) -> None:
    """Check the locations of a reply against a teacher-forced pass over its `tokens`, None for those of its text."""
    boxes, sam_tokens = teacher_forced(mllm, conversation, tokens or tokens_of(mllm, reply))
    assert len(reply.locations) == len(boxes) == reply.text.count(LOCATION_TOKEN)
    for located, box, prompt in zip(reply.locations, boxes, sam_tokens, strict=True):
        corners = box.clamp(0, 1).reshape(2, 2)
        expected = [*corners.amin(0).tolist(), *corners.amax(0).tolist()]
        assert located.box == pytest.approx(expected, abs=TOLERANCE)
        assert torch.allclose(located.sam_tokens, prompt, atol=TOLERANCE) and located.sam_tokens.dtype == torch.float32
        assert reply.text[: located.end].endswith(LOCATION_TOKEN)


def test_locations_equal_a_teacher_forced_pass_in_every_batch(mllm: Mllm) -> None:
    conversations, constraints = questions(), scripts(mllm)
    for size in (1, 3, 8):
        engine = TransformersEngine(mllm, size)
        replies = engine.generate_located(conversations, 9, constraints=constraints)
        assert [len(reply.locations) for reply in replies] == [2, 1, 3, 1, 0, 1]
        for reply, conversation in zip(replies, conversations, strict=True):
            assert reply.finished
            assert_located(mllm, reply, conversation)
        # Without locations the replies are the same, with the same log-probabilities.
        plain = engine.generate(conversations, 9, constraints=constraints)
        assert plain == [Reply(each.text, each.finished) for each in replies] and not plain[0].locations
        for reply, same in zip(replies, plain, strict=True):
            assert [end for end, _ in reply.tokens] == [end for end, _ in same.tokens]
            assert [each for _, each in reply.tokens] == pytest.approx([each for _, each in same.tokens], abs=TOLERANCE)


def test_equal_questions_with_other_boxes_share_no_computation_of_them(mllm: Mllm) -> None:
    conversations = questions()[:4]
    script = scripts(mllm)[1]
    with TransformersEngine(mllm, 4).session() as engine:
        for order in (conversations, conversations[::-1], conversations[1:2]):
            replies = engine.generate_located(order, 4, constraints=[script] * len(order))
            for reply, conversation in zip(replies, order, strict=True):
                assert_located(mllm, reply, conversation)
    first, other = (
        reply.locations[0].sam_tokens
        for reply in engine.generate_located(conversations[:2], 4, constraints=[script] * 2)
    )
    # Gemma's random layers let little of it through.
    assert (first - other).abs().max() > 1e-5, "the box has no effect"


def test_a_reply_that_is_cut_off_has_the_locations_of_its_tokens(mllm: Mllm) -> None:
    token, end = mllm.location_id, mllm.end_ids[0]
    (a,) = mllm.processor.tokenizer.encode("x", add_special_tokens=False)
    entries: list[tuple[Any, ...]] = [
        (a, token, token, end),
        ((a,), (token,), end),
        (token, (a,), a, end),
        (a, a, token),
    ]
    limits = {2: [1, 1, 1, 0], 3: [2, 1, 1, 1]}
    conversations = questions()[:4]
    for limit, counts in limits.items():
        constraints = [lambda each=each: Script(*each) for each in entries]
        replies = TransformersEngine(mllm, 4).generate_located(conversations, limit, constraints=constraints)
        assert [len(reply.locations) for reply in replies] == counts
        for reply, conversation in zip(replies, conversations, strict=True):
            assert_located(mllm, reply, conversation)
    assert [reply.finished for reply in replies] == [False, True, False, False]


def test_free_answers_have_locations_where_the_model_generates_the_token(
    fast_vlm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_mllm(fast_vlm)
    mllm = attach_lora(base, {"r": 2}, 0, locations=LocationSettings(sam_tokens=2, sam_width=4))
    mllm.model.eval()
    conversations = questions()
    engine = TransformersEngine(mllm, 4)
    assert isinstance(engine, LocatingEngine)
    # The location token becomes more probable than one that the model generates.
    (reply,) = engine.generate(conversations[:1], 6)
    chosen = tokens_of(mllm, reply)[1]
    rows = mllm.model.get_output_embeddings().token_adapter.trainable_tokens_delta["default"]
    rows.data[0] = 1.5 * mllm.model.get_output_embeddings().weight[chosen]
    tokens: dict[str, Sequence[int]] = {}

    def noting(tokenizer: Any, answer: Sequence[int], *rest: Any) -> Reply:
        reply = reply_of(tokenizer, answer, *rest)
        tokens[reply.text] = answer
        return reply

    monkeypatch.setattr(transformers_engine, "reply_of", noting)
    replies = engine.generate_located(conversations, 6)
    assert replies[0].locations
    for each, conversation in zip(replies, conversations, strict=True):
        assert_located(mllm, each, conversation, tokens[each.text])


def test_points_of_a_history_with_a_box_are_scored_by_that_box(mllm: Mllm) -> None:
    histories = [
        Conversation(each.image, (*each.turns, Turn("assistant", "[1,2]")))
        for each in (*questions()[:2], questions()[0])
    ]
    queries = [YesNoQuery(history, (YesNoQuestion("On (1,2)?", 1),)) for history in histories]
    alone = [TransformersEngine(mllm, 1).score_answers([query])[0][0][0] for query in queries]
    together = [scored[0][0] for scored in TransformersEngine(mllm, 4).score_answers(queries)]
    for one, other in zip(alone, together, strict=True):
        assert (one.yes, one.no) == pytest.approx((other.yes, other.no), rel=1e-3)
    assert alone[0] != alone[1] and alone[0] == alone[2]


def test_what_has_no_location_heads_or_no_box_is_refused(fast_vlm: str) -> None:
    plain = TransformersEngine(load_mllm(fast_vlm), 2)
    with pytest.raises(ModelError, match=r"no location heads, so it cannot answer .* method\.name=pix2emb"):
        plain.generate_located(questions()[4:5], 2)
    with pytest.raises(ModelError, match="no location heads, so no box can be part of its input"):
        plain.generate(questions()[:1], 2)
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 2}, 0, locations=LocationSettings())
    unmarked = Conversation(None, (Turn("user", f"What is at {LOCATION_TOKEN}?"),))
    with pytest.raises(DataError, match="holds '<location>', which the model reads as a control token"):
        TransformersEngine(mllm, 2).generate([unmarked], 2)


def test_weights_that_are_sharded_and_servers_are_refused(fast_vlm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 2}, 0, locations=LocationSettings())
    monkeypatch.setattr(transformers_engine, "sharded_over_processes", lambda _: True)
    engine = TransformersEngine(mllm, 2)
    with pytest.raises(ModelError, match=r"sharded over processes \(FSDP, ZeRO-3\); load the run"):
        engine.generate_located(questions()[4:5], 2)
    with pytest.raises(ModelError, match="regions are not embedded by weights that are sharded"):
        engine.generate(questions()[:1], 2)
    assert not isinstance(ServerEngine, LocatingEngine)
    with pytest.raises(ModelError, match="a server takes no regions"):
        ServerEngine.generate(object.__new__(ServerEngine), questions()[:1], 2)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_base_has_float32_heads_and_rows_and_reloads_equal(
    fast_vlm: str, tmp_path: Path, quantization: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    base = load_mllm(fast_vlm, quantization=quantization)
    mllm = attach_lora(base, {"r": 2}, 0, locations=LocationSettings(sam_tokens=2, sam_width=4))
    trained = [weight for weight in mllm.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    for weight in trained:
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    mllm.model.eval()
    mllm.model.save_pretrained(tmp_path)
    mllm.processor.save_pretrained(tmp_path)
    reloaded = load_mllm(fast_vlm, tmp_path, quantization=quantization)
    replies = [
        TransformersEngine(each, 3).generate_located(questions()[:3], 9, constraints=scripts(each)[:3])
        for each in (mllm, reloaded)
    ]
    for one, other in zip(*replies, strict=True):
        assert one.text == other.text and len(one.locations) == len(other.locations) > 0
        for first, second in zip(one.locations, other.locations, strict=True):
            assert first.box == second.box and torch.equal(first.sam_tokens, second.sam_tokens)
