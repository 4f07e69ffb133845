import json
import shutil
from dataclasses import replace

import pytest
import torch

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.mllm.families import Family
from sam4mllm.mllm.loading import load_mllm, load_processor
from sam4mllm.mllm.lora import adapted_modules, attach_lora


def test_a_loaded_model_is_ready_to_run(fast_vlm):
    mllm = load_mllm(fast_vlm, dtype="bfloat16")
    assert not mllm.model.training
    assert (mllm.device.type, mllm.dtype, mllm.family.model_type) == ("cpu", torch.bfloat16, "fast_vlm")
    assert mllm.processor.tokenizer.pad_token is not None
    assert mllm.end_ids == [mllm.processor.tokenizer.eos_token_id]


def test_an_adapter_changes_the_model_and_its_processor_is_used(fast_vlm, tmp_path):
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 4, "init_lora_weights": False}, seed=0)
    mllm.model.save_pretrained(tmp_path)
    mllm.processor.chat_template = "{# of the run #}" + mllm.processor.chat_template
    mllm.processor.save_pretrained(tmp_path)

    tuned = load_mllm(fast_vlm, tmp_path)
    assert tuned.processor.chat_template.startswith("{# of the run #}")
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = [each.model(input_ids=ids).logits for each in (mllm, tuned, load_mllm(fast_vlm))]
    torch.testing.assert_close(logits[0], logits[1])
    assert (logits[1] - logits[2]).abs().max() > 1e-4


def test_a_base_that_does_not_load_is_an_error_of_one_line(fast_vlm, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    cases = {
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path): "does not load as an image-text-to-text model",
    }
    for base, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_mllm(base)
        assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_instead_of_weights_is_refused(fast_vlm, tmp_path):
    """A clone without Git LFS leaves such a file."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"
    shutil.copytree(fast_vlm, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="does not load as an image-text-to-text model: Error while deserializing"):
        load_mllm(str(tmp_path / "base"))
    attach_lora(load_mllm(fast_vlm), {"r": 4}, seed=0).model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="does not load on 'fast_vlm': Error while deserializing"):
        load_mllm(fast_vlm, tmp_path / "adapter")


def test_a_checkpoint_that_lacks_weights_is_refused(fast_vlm, tmp_path):
    """transformers would initialize them at random and continue."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(fast_vlm, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    missing = sorted(name for name in weights if "self_attn.q_proj" in name)
    save_file({name: w for name, w in weights.items() if name not in missing}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ModelError, match=rf"lacks {len(missing)} of the model's weights .*q_proj") as caught:
        load_mllm(str(tmp_path / "base"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_size_is_refused(fast_vlm, tmp_path):
    shutil.copytree(fast_vlm, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not load as an image-text-to-text model") as caught:
        load_mllm(str(tmp_path / "base"))
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_network_and_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_mllm, load_processor):
        with pytest.raises(ModelError, match="'owner/no-such-model' is not a folder, and cannot be down") as caught:
            load("owner/no-such-model")
        assert "\n" not in str(caught.value)


def test_an_image_size_limit_is_saved_with_the_processor(qwen2_vl, tmp_path):
    mllm = load_mllm(qwen2_vl, image_size={"max_pixels": 1568})
    assert mllm.processor.image_processor.size["longest_edge"] == 1568
    attach_lora(mllm, {"r": 4}, seed=0).model.save_pretrained(tmp_path)
    mllm.processor.save_pretrained(tmp_path)
    assert load_mllm(qwen2_vl, tmp_path).processor.image_processor.size["longest_edge"] == 1568


def test_the_projector_of_an_unknown_family_is_an_error(fast_vlm):
    mllm = load_mllm(fast_vlm)
    with pytest.raises(RecipeError, match=r"model\.tune_projector: no projector is known for 'my_vlm'"):
        attach_lora(replace(mllm, family=Family("my_vlm", "My VLM")), {"r": 4}, 0, tune_projector=True)


def test_a_projector_in_half_precision_is_tuned_in_float32(fast_vlm):
    mllm = attach_lora(load_mllm(fast_vlm, dtype="bfloat16"), {"r": 4}, 0, tune_projector=True)
    trained = {n: p.dtype for n, p in mllm.model.named_parameters() if p.requires_grad and "projector" in n}
    assert trained and set(trained.values()) == {torch.float32}
    images = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
    image_token = mllm.model.config.image_token_id
    with torch.no_grad():
        logits = mllm.model(input_ids=torch.tensor([[image_token] * 4 + [5]]), pixel_values=images).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_no_progress_bar_is_written_to_a_log(fast_vlm, capfd):
    load_mllm(fast_vlm)
    assert "Loading weights" not in capfd.readouterr().err


def test_an_adapter_folder_without_adapter(fast_vlm, tmp_path):
    with pytest.raises(ModelError, match=r"contains no LoRA adapter \(adapter_config.json is missing\)"):
        load_mllm(fast_vlm, tmp_path)


def test_an_adapter_of_another_model(fast_vlm, qwen2_vl, tmp_path):
    attach_lora(load_mllm(qwen2_vl), {"r": 4, "target_modules": r".*language_model.*q_proj"}, 0).model.save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["no_such_layer"]}))
    with pytest.raises(ModelError, match="was it trained on another base"):
        load_mllm(fast_vlm, tmp_path)


def test_a_base_without_chat_template(fast_vlm, tmp_path):
    shutil.copytree(fast_vlm, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_mllm(str(tmp_path / "base"))


def test_the_template_end_token_ends_an_answer(qwen2_vl):
    """Llama 3 ends turns with <|eot_id|>, but some of its checkpoints list <|end_of_text|> alone."""
    mllm = load_mllm(qwen2_vl)
    tokenizer = mllm.processor.tokenizer
    closing, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|pad|>"])
    tokenizer.eos_token, mllm.model.generation_config.eos_token_id = "<|pad|>", [other]
    assert mllm.end_ids == sorted([closing, other])
    mllm.processor.chat_template = mllm.processor.chat_template.replace("{% endfor %}<|im_end|>", "{% endfor %}")
    assert mllm.end_ids == [other]


def test_lora_adapts_the_language_model_alone(fast_vlm, qwen2_vl):
    for base in (fast_vlm, qwen2_vl):
        mllm = attach_lora(load_mllm(base), {"r": 4}, seed=0)
        names = adapted_modules(mllm)
        assert len(names) == 2 * 7
        assert all("language_model.layers" in name for name in names)
        trained = [name for name, parameter in mllm.model.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained)


def test_initial_lora_weights_depend_on_the_seed_alone(fast_vlm):
    def initial_weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        model = attach_lora(load_mllm(fast_vlm), {"r": 4}, seed).model
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])

    assert torch.equal(initial_weights(7), initial_weights(7))
    assert not torch.equal(initial_weights(7), initial_weights(8))


def test_lora_settings_that_peft_refuses(fast_vlm):
    for settings in ({"r": 0}, {"target_modules": ["no_such_layer"]}, {"nonsense": 1}):
        with pytest.raises(RecipeError, match="lora: peft refuses"):
            attach_lora(load_mllm(fast_vlm), settings, seed=0)


def test_an_error_of_peft_without_a_message_is_reported_by_its_class(fast_vlm, monkeypatch):
    def refuse(*_):
        raise ValueError

    monkeypatch.setattr("peft.get_peft_model", refuse)
    with pytest.raises(RecipeError, match="lora: peft refuses these settings: ValueError"):
        attach_lora(load_mllm(fast_vlm), {"r": 4}, seed=0)


def test_batch_norms_keep_the_running_statistics_of_the_base(fast_vlm):
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 4}, seed=0)
    tower = mllm.model.get_base_model().model.vision_tower
    before = {name: value.clone() for name, value in tower.named_buffers()}
    images = torch.randn(3, 3, 64, 64)
    mllm.model.train()
    with torch.no_grad():
        together = tower(images).last_hidden_state
        mllm.model.train()
        alone = tower(images[:1]).last_hidden_state
    assert before and all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    torch.testing.assert_close(together[:1], alone)
