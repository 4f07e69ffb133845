import json
import shutil

import pytest
import torch

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.mllm.load import load_mllm
from sam4mllm.mllm.lora import adapted_modules, attach_lora


def test_a_model_comes_ready_to_run(fast_vlm):
    mllm = load_mllm(fast_vlm, dtype="bfloat16")
    assert not mllm.model.training
    assert (mllm.device.type, mllm.dtype, mllm.family.model_type) == ("cpu", torch.bfloat16, "fast_vlm")
    assert mllm.processor.tokenizer.pad_token is not None
    assert mllm.end_ids == [mllm.processor.tokenizer.eos_token_id]


def test_an_adapter_changes_the_model_and_brings_its_processor(fast_vlm, tmp_path):
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


def test_what_does_not_load_says_so_on_one_line(fast_vlm, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    cases = {
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path): "does not load as an image-text-to-text model",
    }
    for base, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_mllm(base)
        assert "\n" not in str(caught.value)


def test_weights_that_are_a_pointer_to_elsewhere(fast_vlm, tmp_path):
    """What a clone without Git LFS leaves."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"
    shutil.copytree(fast_vlm, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="does not load as an image-text-to-text model: Error while deserializing"):
        load_mllm(str(tmp_path / "base"))
    attach_lora(load_mllm(fast_vlm), {"r": 4}, seed=0).model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="does not load on 'fast_vlm': Error while deserializing"):
        load_mllm(fast_vlm, tmp_path / "adapter")


def test_no_progress_bar_goes_into_a_log(fast_vlm, capfd):
    load_mllm(fast_vlm)
    assert "Loading weights" not in capfd.readouterr().err


def test_an_adapter_folder_without_adapter(fast_vlm, tmp_path):
    with pytest.raises(ModelError, match=r"no LoRA adapter here \(adapter_config.json is missing\)"):
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


def test_lora_reaches_the_language_model_alone(fast_vlm, qwen2_vl):
    for base in (fast_vlm, qwen2_vl):
        mllm = attach_lora(load_mllm(base), {"r": 4}, seed=0)
        names = adapted_modules(mllm)
        assert len(names) == 2 * 7
        assert all("language_model.layers" in name for name in names)
        trained = [name for name, parameter in mllm.model.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained)


def test_loras_first_values_depend_on_the_seed_alone(fast_vlm):
    def first_values(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        model = attach_lora(load_mllm(fast_vlm), {"r": 4}, seed).model
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])

    assert torch.equal(first_values(7), first_values(7))
    assert not torch.equal(first_values(7), first_values(8))


def test_lora_settings_that_peft_refuses(fast_vlm):
    for settings in ({"r": 0}, {"target_modules": ["no_such_layer"]}, {"nonsense": 1}):
        with pytest.raises(RecipeError, match="lora: peft refuses"):
            attach_lora(load_mllm(fast_vlm), settings, seed=0)


def test_batch_norms_keep_the_statistics_of_the_base(fast_vlm):
    mllm = attach_lora(load_mllm(fast_vlm), {"r": 4}, seed=0)
    tower = mllm.model.get_base_model().model.vision_tower
    before = {name: value.clone() for name, value in tower.named_buffers()}
    pictures = torch.randn(3, 3, 64, 64)
    mllm.model.train()
    with torch.no_grad():
        together = tower(pictures).last_hidden_state
        mllm.model.train()
        alone = tower(pictures[:1]).last_hidden_state
    assert before and all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    torch.testing.assert_close(together[:1], alone)
