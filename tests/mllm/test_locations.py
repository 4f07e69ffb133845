"""The location token and heads on a model: what they change, and that adapters and folders restore them to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.location_weights import HEADS_FILE, hidden_size_of, save_model
from sam4mllm.mllm.locations import LocationSettings, add_locations, decode_locations
from sam4mllm.mllm.lora import adapter_disabled, attach_lora, has_adapter, merge_for_inference
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.utils.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS

SETTINGS = LocationSettings(sam_tokens=2, sam_width=8)
# Output rows of its own, tied ones, and a second matrix of input rows besides tied ones.
FAMILIES = ("fast_vlm", "gemma3", "gemma4")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_mllm(request.param, tmp_path_factory.mktemp(request.param), seed=1))


def trained(base: str, **settings: Any) -> Mllm:
    """A model with a located adapter of random values."""
    mllm = attach_lora(load_mllm(base, **settings), {"r": 2}, seed=0, locations=SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for weight in mllm.model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return mllm


def save_run(mllm: Mllm, folder: Path) -> Path:
    mllm.model.save_pretrained(folder)
    mllm.processor.save_pretrained(folder)
    return folder


def outputs(mllm: Mllm) -> list[torch.Tensor]:
    """All rows, some logits, and what each head computes."""
    model, heads = mllm.model, mllm.location_heads
    width = model.get_input_embeddings().weight.shape[1]
    states = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(model.get_input_embeddings().weight.shape[0])[None]
    with torch.no_grad():
        return [
            model.get_input_embeddings()(ids),
            model.get_output_embeddings()(states.to(mllm.dtype)),
            model(input_ids=torch.tensor([[5, 6, mllm.location_id, 7]])).logits,
            heads.decode_boxes(states),
            heads.encode_boxes(torch.rand(2, 4, generator=torch.Generator().manual_seed(0))),
            heads.sam_tokens(states),
        ]


def assert_equal(first: Mllm, second: Mllm) -> None:
    """Check for equal outputs: to the bit, or up to the order of additions if one of them has rows beside a matrix."""
    assert first.location_id == second.location_id
    for one, other in zip(outputs(first), outputs(second), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if has_adapter(first) == has_adapter(second):
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_restores_token_and_heads_to_the_bit(base: str, dtype: Any, tmp_path: Path) -> None:
    mllm = trained(base, dtype=dtype)
    weights = {name: weight.dtype for name, weight in mllm.model.named_parameters() if weight.requires_grad}
    assert set(weights.values()) == {torch.float32}
    run = save_run(mllm, tmp_path / "run")
    reloaded = load_mllm(base, run, dtype=dtype)
    assert_equal(mllm, reloaded)
    # Neither the rows of other tokens nor the base's weights are in the adapter's file.
    others = [
        name for name in load_file(run / ADAPTER_WEIGHTS) if "lora_" not in name and "location_heads." not in name
    ]
    tied = mllm.model.get_output_embeddings().weight.equal(mllm.model.get_input_embeddings().weight)
    assert len(others) == (1 if tied else 2) and all("trainable_tokens_delta" in name for name in others)
    merged = merge_for_inference(reloaded)
    assert merged.location_heads is merged.model.location_heads
    for index, (one, other) in enumerate(zip(outputs(mllm), outputs(merged), strict=True)):
        # LoRA's sums are rounded to bfloat16, so logits of the merged model differ.
        assert torch.allclose(one, other, atol=1e-5) or (dtype == "bfloat16" and index == 2)
    if tied:
        assert merged.model.get_output_embeddings().weight is merged.model.get_input_embeddings().weight


def test_a_base_without_locations_and_its_other_tokens_are_unchanged(base: str) -> None:
    plain, mllm = load_mllm(base), load_mllm(base)
    rows = len(plain.model.get_input_embeddings().weight)
    assert plain.location_heads is None and plain.location_id is None
    add_locations(mllm, SETTINGS, seed=0)
    tokenizer = mllm.processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(f"a{LOCATION_TOKEN}b"), skip_special_tokens=True) == f"a{LOCATION_TOKEN}b"
    assert mllm.location_id == rows == len(mllm.model.get_input_embeddings().weight) - 1
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each.model, get)().weight for each in (plain, mllm))
        assert torch.equal(before, after[:rows]) and torch.allclose(after[rows], before.mean(0))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before, after = (each.model(input_ids=ids).logits for each in (plain, mllm))
    assert torch.allclose(before, after[..., :rows], atol=1e-5)


def test_initial_values_depend_on_the_seed_alone(fast_vlm: str) -> None:
    one, same, other = (add_locations(load_mllm(fast_vlm), SETTINGS, seed) for seed in (3, 3, 4))
    torch.rand(7)
    assert_equal(one, same)
    assert not torch.equal(outputs(one)[3], outputs(other)[3])
    state = torch.get_rng_state()
    add_locations(load_mllm(fast_vlm), LocationSettings(not_a_point=torch.ones(256)), 3)
    assert torch.equal(state, torch.get_rng_state())


def test_a_spare_row_is_used_before_the_matrices_grow(fast_vlm: str) -> None:
    mllm = load_mllm(fast_vlm)
    rows = len(mllm.model.get_input_embeddings().weight)
    mllm.model.resize_token_embeddings(rows + 5, mean_resizing=False)
    add_locations(mllm, SETTINGS, 0)
    weight = mllm.model.get_input_embeddings().weight
    assert len(weight) == rows + 5 and mllm.location_id == rows
    assert torch.allclose(weight[rows], weight[:rows].mean(0))


def test_a_complete_model_keeps_its_heads_in_a_file_of_their_own(base: str, tmp_path: Path) -> None:
    merged = merge_for_inference(trained(base))
    save_model(merged.model, tmp_path / "merged")
    merged.processor.save_pretrained(tmp_path / "merged")
    assert merged.location_heads is not None
    assert not [name for name in load_file(tmp_path / "merged/model.safetensors") if "location_heads" in name]
    reloaded = load_mllm(str(tmp_path / "merged"))
    assert_equal(merged, reloaded)
    # A further training begins with these heads and rows, and one without locations leaves them frozen.
    further = attach_lora(reloaded, {"r": 2}, seed=5, locations=SETTINGS)
    assert_equal(merged, further)
    frozen = attach_lora(load_mllm(str(tmp_path / "merged")), {"r": 2}, seed=5)
    assert all("lora_" in name for name, weight in frozen.model.named_parameters() if weight.requires_grad)
    assert_equal(merged, frozen)
    with pytest.raises(ModelError, match=r"2 prompt tokens for SAM.*set method\.sam_tokens: 2"):
        add_locations(load_mllm(str(tmp_path / "merged")), LocationSettings(sam_width=8), 0)
    assert (tmp_path / "merged" / HEADS_FILE).is_file()


def test_heads_of_any_width_are_kept_where_prompt_tokens_are_not_used(fast_vlm: str) -> None:
    # method.prompt: box leaves the width open, and the heads of the base were refused for it.
    mllm = add_locations(load_mllm(fast_vlm), SETTINGS, 0)
    heads = mllm.location_heads
    assert heads is not None and heads.sam_width == SETTINGS.sam_width
    assert add_locations(mllm, LocationSettings(SETTINGS.sam_tokens), 0).location_heads is heads
    with pytest.raises(ModelError, match="take a segmenter of that width"):
        add_locations(mllm, LocationSettings(SETTINGS.sam_tokens, heads.sam_width + 1), 0)


def test_the_heads_of_a_disabled_adapter_are_the_bases(fast_vlm: str) -> None:
    mllm = trained(fast_vlm)
    tuned = mllm.location_heads
    with adapter_disabled(mllm):
        assert mllm.location_heads is not tuned
    assert mllm.location_heads is tuned


def test_lora_adapts_no_layer_of_the_heads(fast_vlm: str) -> None:
    lora = {"r": 2, "target_modules": "all-linear", "exclude_modules": ["lm_head"]}
    mllm = attach_lora(load_mllm(fast_vlm), lora, 0, locations=SETTINGS)
    names = [name for name, _ in mllm.model.named_parameters() if "location_heads" in name]
    assert names and not [name for name in names if "lora_" in name]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"trainable_token_indices": [1]}, r"lora\.trainable_token_indices: the method trains"),
        ({"modules_to_save": ["lm_head"]}, r"lora\.modules_to_save: the method trains one row of 'lm_head'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"lora\.target_modules: .* 'embed_tokens'"),
    ],
)
def test_layers_whose_row_is_trained_are_not_trained_otherwise(fast_vlm: str, lora: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        attach_lora(load_mllm(fast_vlm), {"r": 2, **lora}, 0, locations=SETTINGS)


def test_an_adapter_without_its_processor_gets_the_token_of_the_base(fast_vlm: str, tmp_path: Path) -> None:
    mllm = trained(fast_vlm)
    mllm.model.save_pretrained(tmp_path)
    assert_equal(mllm, load_mllm(fast_vlm, tmp_path))
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    moved = {name: [rows[0] + 1] for name, rows in config["trainable_token_indices"].items()}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, "trainable_token_indices": moved}))
    with pytest.raises(ModelError, match=r"'<location>' has the id 356 in the tokenizer, but .* with 357"):
        load_mllm(fast_vlm, tmp_path)


def test_a_run_that_is_not_merged_is_refused_as_a_base(fast_vlm: str, tmp_path: Path) -> None:
    run = save_run(trained(fast_vlm), tmp_path / "run")
    with pytest.raises(ModelError, match=rf"is a run folder of pix2emb .* \(sam4mllm merge {run} FOLDER\)"):
        load_mllm(str(run))


def test_heads_that_are_damaged_or_of_another_width_are_refused(fast_vlm: str, qwen2_vl: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    mllm = add_locations(load_mllm(fast_vlm), SETTINGS, 0)
    save_model(mllm.model, tmp_path)
    mllm.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / HEADS_FILE)
    save_file({name: weight for name, weight in weights.items() if "box_decoder" not in name}, tmp_path / HEADS_FILE)
    with pytest.raises(ModelError, match=r"location_heads\.safetensors: its location heads are not complete"):
        load_mllm(str(tmp_path))
    other = add_locations(load_mllm(qwen2_vl), LocationSettings(), 0).location_heads
    narrow = type(other)(32).state_dict()
    save_file(narrow, tmp_path / HEADS_FILE)
    with pytest.raises(ModelError, match="of width 32, but the model is of width 64"):
        load_mllm(str(tmp_path))


def test_states_that_are_not_finite_have_no_locations(tmp_path: Path) -> None:
    mllm = trained(str(save_tiny_mllm("fast_vlm", tmp_path, seed=1)))
    states = [torch.zeros(hidden_size_of(mllm.model)), torch.full((hidden_size_of(mllm.model),), torch.inf)]
    assert mllm.location_id is not None
    assert len(decode_locations(mllm, [mllm.location_id], states[:1])) == 1
    with pytest.raises(ModelError, match=r"states of location tokens are not finite.* dtype bfloat16 or float32"):
        decode_locations(mllm, [mllm.location_id] * 2, states)
