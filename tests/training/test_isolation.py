"""Isolated phrases share a prefix and have the loss and the gradients of separate sequences, in every family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers import AttentionInterface, TrainerCallback
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import (
    Conversation,
    inference_conversation,
    isolated_conversation,
    training_conversation,
)
from sam4mllm.testing import TINY_MLLMS, save_tiny_mllm
from sam4mllm.training.collator import IGNORED, Collator
from sam4mllm.training.isolation import BranchRows, isolate_branches
from tests.training.helpers import StopAt, adapter_of, largest_difference, make_recipe, run_fit

TOLERANCE = 1e-4


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (84, 56), (30, 112))]


def conversations(several_answers: bool = True) -> list[Conversation]:
    """Three, one and two branches of different lengths, the second of the first with two answers, and chat."""
    first, second, third = images()
    further = [("c", "[5,6,7,8] +(1,1)")] if several_answers else []
    return [
        isolated_conversation(
            first,
            [
                [("Where is a?", "[1,2,3,4]")],
                [("Where is the bb?", "No object found."), *further],
                [("Where is the bxcb?", "[9,1,2,3]")],
            ],
        ),
        isolated_conversation(second, [[("Where?", "[7,7]")]]),
        # Equal questions: the prefix ends before their answers.
        isolated_conversation(third, [[("Box it", "[1,2,3,4]")], [("Box it", "[4,4,4,4]")]]),
        training_conversation(None, [("Why?", "So.")]),
    ]


def adapted(base: Path, **settings: str | None) -> Mllm:
    """The model with an adapter of random weights, so that the gradients of both factors are not zero."""
    mllm = attach_lora(load_mllm(str(base), **settings), {"r": 4, "lora_alpha": 32}, 0)
    torch.manual_seed(1)
    for parameter in mllm.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return mllm


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(a, b) -> None:
    assert abs(a[0] - b[0]) < TOLERANCE
    assert a[1].keys() == b[1].keys() and a[1]
    assert max(float((a[1][name] - b[1][name]).abs().max()) for name in a[1]) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "attention"),
    [*((family, None) for family in TINY_MLLMS), *((family, "eager") for family in ("gemma3", "qwen3_5", "molmo2"))],
)
def test_loss_and_gradients_are_those_of_separate_sequences(tmp_path, family, attention):
    mllm = adapted(save_tiny_mllm(family, tmp_path), attn_implementation=attention)
    assert mllm.model.get_base_model().get_decoder().config._attn_implementation == (attention or "sdpa")
    collator = Collator(mllm)
    separate = collator([branch for each in conversations() for branch in each.branches])
    packed = collator(conversations())
    expected = loss_and_gradients(mllm.model, separate)
    isolate_branches(mllm.model)
    check_equal(loss_and_gradients(mllm.model, packed), expected)
    # The images and their tokens are there once for each conversation.
    assert packed["input_ids"].shape[0] == 4 and packed["attention_mask"].sum() < separate["attention_mask"].sum()
    assert (packed["labels"] != IGNORED).sum() == (separate["labels"] != IGNORED).sum()
    # Without the branches the phrases would see each other; a batch without branches passes unchanged.
    together = {name: value for name, value in packed.items() if name not in ("branch_ids", "positions")}
    assert abs(loss_and_gradients(mllm.model, together)[0] - expected[0]) > 10 * TOLERANCE
    unchanged = loss_and_gradients(mllm.model, separate)
    assert unchanged[0] == expected[0] and all(unchanged[1][name].equal(expected[1][name]) for name in expected[1])


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3", "lfm2_vl", "fast_vlm"])
def test_gradient_checkpointing_and_generation_in_between_change_nothing(tmp_path, family):
    mllm = adapted(save_tiny_mllm(family, tmp_path))
    question = [inference_conversation(images()[0], "Where is it?")]
    answer = TransformersEngine(mllm, 1).generate(question, 4)[0].text
    isolate_branches(mllm.model)
    batch = Collator(mllm)(conversations())
    expected = loss_and_gradients(mllm.model, batch)
    assert TransformersEngine(mllm, 1).generate(question, 4)[0].text == answer
    mllm.model.gradient_checkpointing_enable({"use_reentrant": False})
    mllm.model.train()
    assert mllm.model.get_base_model().is_gradient_checkpointing
    check_equal(loss_and_gradients(mllm.model, batch), expected)


@pytest.mark.parametrize("stopped_after", [3, 6])
def test_a_run_with_isolated_phrases_resumes_with_the_same_adapter(tmp_path, fast_vlm, stopped_after):
    # Three rows a batch, so that sequences with and without several branches share batches.
    settings = ("method.packing=isolated", "training.per_device_train_batch_size=3")
    whole = make_recipe(tmp_path, fast_vlm, *settings, f"output={tmp_path}/whole")
    parts = make_recipe(tmp_path, fast_vlm, *settings, f"output={tmp_path}/parts")
    expected = run_fit(whole, conversations=conversations() * 2)
    with pytest.raises(KeyboardInterrupt):
        run_fit(parts, conversations=conversations() * 2, stop=StopAt(stopped_after))
    resumed = run_fit(parts, conversations=conversations() * 2)
    weights, again = adapter_of(expected.path), adapter_of(resumed.path)
    assert all(weights[name].equal(again[name]) for name in weights)


def test_a_batch_that_does_not_fit_is_divided_between_sequences(tmp_path, fast_vlm, monkeypatch):
    recipe = make_recipe(tmp_path, fast_vlm, "training.max_steps=2", "lora.lora_dropout=0", f"output={tmp_path}/a")
    expected = adapter_of(run_fit(recipe, conversations=conversations()).path)

    def out_of_memory_with_two(model, args, kwargs):
        if len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("out of memory")

    class Limit(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.register_forward_pre_hook(out_of_memory_with_two, with_kwargs=True)

    smaller = recipe.model_copy(update={"output": tmp_path / "b"})
    divided = adapter_of(run_fit(smaller, conversations=conversations(), stop=Limit()).path)
    assert largest_difference(expected, divided) < TOLERANCE


def test_branches_are_laid_out_as_rows_behind_copies_of_the_prefix():
    branches = torch.tensor([[0, 0, 1, 2, 2], [0, 0, 0, -1, -1]])
    positions = torch.tensor([[0, 1, 2, 2, 3], [0, 1, 2, 0, 0]])
    rows = BranchRows.of(branches, positions)
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    divided = rows.divide(hidden)
    assert divided[:, :, 0].tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 6, 7, 5]]
    joined = rows.join(divided)
    assert joined[branches >= 0].equal(hidden[branches >= 0])


def test_flex_attention_gets_the_same_mask(tmp_path, monkeypatch):
    # Its backward pass needs a GPU, so the function that it compiles is compared with the mask of sdpa.
    mllm = adapted(save_tiny_mllm("fast_vlm", tmp_path))
    made = []

    def sdpa_mask_and_function(**options):
        mask = sdpa_mask(**options)
        shape = (options["batch_size"], 1, options["q_length"], options["kv_length"])
        visible = create_mask(options["mask_function"], *shape, device="cpu")
        made.append((mask, visible & options["attention_mask"][:, None, None, :]))
        return mask

    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", sdpa_mask_and_function)
    isolate_branches(mllm.model)
    with torch.no_grad():
        mllm.model(**Collator(mllm)(conversations()))
    ((mask, of_function),) = made
    assert mask.equal(of_function) and not mask.all()


def test_a_model_whose_masks_are_not_made_by_transformers_is_an_error(tmp_path, monkeypatch):
    mllm = adapted(save_tiny_mllm("fast_vlm", tmp_path))
    isolate_branches(mllm.model)
    monkeypatch.setattr("transformers.models.qwen2.modeling_qwen2.create_causal_mask", lambda **_: None)
    with pytest.raises(ModelError, match=r"does not make its attention masks .*; set method\.packing=turns"):
        mllm.model(**Collator(mllm)(conversations()))
    # The function that was replaced for the forward pass is back, also after an error.
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask


def test_an_attention_without_masks_from_functions_is_refused(tmp_path, monkeypatch):
    mllm = adapted(save_tiny_mllm("fast_vlm", tmp_path))
    monkeypatch.setitem(AttentionInterface._global_mapping, "without_masks", lambda *_, **__: None)
    mllm.model.get_base_model().get_decoder().config._attn_implementation = "without_masks"
    with pytest.raises(ModelError, match=r"'without_masks' does not take; set model\.attn_implementation to sdpa"):
        isolate_branches(mllm.model)


def test_text_of_a_phrase_before_the_image_is_refused(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    template = mllm.processor.chat_template
    mllm.processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}" + template
    with pytest.raises(ModelError, match=r"puts text of a phrase before the image.*; set method\.packing=turns"):
        Collator(mllm)(conversations(several_answers=False))
