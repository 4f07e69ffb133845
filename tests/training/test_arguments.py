"""Settings that cannot work are refused before training: keys, packages, devices, processes."""

from types import SimpleNamespace

import pytest
import torch

from sam4mllm.data.mixture import Mixture
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.errors import LaunchError, RecipeError
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.testing import save_tiny_sam
from sam4mllm.training.arguments import (
    check_launch,
    check_locations,
    check_text_only,
    loader_processes,
    location_settings,
    training_arguments,
)
from sam4mllm.utils.distributed import SINGLE_PROCESS
from tests.training.helpers import make_recipe, run_fit


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.remove_unused_columns=true", "training.remove_unused_columns: conversations have no columns"),
        ("training.eval_strategy=steps", "training.eval_strategy: training is validated by generating"),
        ("training.lr_scheduler_type=nonsense", "transformers refuses these settings: .*nonsense"),
        ("training.fsdp=true", "training.fsdp: FSDP needs GPUs; leave it out"),
        ("training.eval_on_start=true", "training.eval_on_start: training is validated by generating"),
        ("training.train_sampling_strategy=sequential", "is sequential; set random, or group_by_length"),
        ("training.save_strategy=best", "training.save_strategy: the best adapter by validation is kept automatically"),
        ("training.report_to=comet_ml", "transformers refuses these settings: .*comet"),
    ],
)
def test_reserved_and_invalid_training_keys_are_refused(tmp_path, fast_vlm, override, message):
    with pytest.raises(RecipeError, match=message):
        run_fit(make_recipe(tmp_path, fast_vlm, override))


def test_missing_deepspeed_is_reported(tmp_path, fast_vlm, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"training.deepspeed: deepspeed is not installed; pip install 'sam4mllm\["):
        run_fit(make_recipe(tmp_path, fast_vlm, "training.deepspeed={zero_optimization: {stage: 2}}"))


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["model.quantization=4bit"], "model.quantization: bitsandbytes"),
        (["training.optim=paged_adamw_8bit"], "training.optim: bitsandbytes"),
    ],
)
def test_missing_bitsandbytes_is_reported_before_training(tmp_path, fast_vlm, monkeypatch, overrides, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"{missing} is not installed; pip install 'sam4mllm\[quantization\]'"):
        training_arguments(make_recipe(tmp_path, fast_vlm, *overrides), "cpu")


def test_other_processes_make_the_batches_of_a_gpu(tmp_path, fast_vlm, monkeypatch):
    monkeypatch.setattr("sam4mllm.training.arguments.loader_processes", lambda: 3)
    recipe, chosen = (make_recipe(tmp_path, fast_vlm, *more) for more in ((), ("training.dataloader_num_workers=7",)))
    assert training_arguments(recipe, "cpu").dataloader_num_workers == 0
    assert training_arguments(recipe, "cuda").dataloader_num_workers == 3
    assert {training_arguments(chosen, device).dataloader_num_workers for device in ("cpu", "cuda")} == {7}


@pytest.mark.parametrize(
    ("cpus", "launched", "shared_memory", "expected"),
    [
        (16, None, 2**34, 4),
        (3, None, 2**34, 3),
        (16, "8", 2**34, 2),
        # Too few CPUs, and the shared memory of a container.
        (4, "8", 2**34, 0),
        (16, None, 64 * 2**20, 0),
    ],
)
def test_loader_processes_fit_into_cpus_and_shared_memory(
    monkeypatch, tmp_path, cpus, launched, shared_memory, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=shared_memory))
    monkeypatch.setattr("sam4mllm.training.arguments._SHARED_MEMORY", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", launched)
    assert loader_processes() == expected


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0"])
def test_the_device_that_transformers_trains_on_is_accepted(device):
    check_launch(
        SimpleNamespace(world_size=1, device=torch.device("cuda:0"), deepspeed_plugin=None), device, SINGLE_PROCESS
    )


def test_another_gpu_than_the_first_visible_one_is_refused():
    with pytest.raises(LaunchError, match=r"--device cuda:1: .* CUDA_VISIBLE_DEVICES=1"):
        check_launch(
            SimpleNamespace(world_size=1, device=torch.device("cuda:0"), deepspeed_plugin=None),
            "cuda:1",
            SINGLE_PROCESS,
        )


@pytest.mark.parametrize(
    ("fsdp", "zero_stage", "tune_projector", "world_size", "refused"),
    [
        (True, None, False, 2, "training.fsdp"),
        (None, 3, False, 2, "training.deepspeed"),
        (None, 2, True, 2, "training.deepspeed"),
        (None, 2, False, 2, None),
        (None, None, True, 2, None),
        (True, None, False, 1, None),
    ],
)
def test_chat_without_an_image_is_refused_where_processes_would_wait_for_each_other(
    tmp_path, fast_vlm, fsdp, zero_stage, tune_projector, world_size, refused
):
    recipe = make_recipe(tmp_path, fast_vlm, f"model.tune_projector={str(tune_projector).lower()}")
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    arguments = SimpleNamespace(fsdp=fsdp, deepspeed_plugin=plugin)
    processes = SimpleNamespace(world_size=world_size)
    of_image, of_text = (Dialogue("chat/1", image, (("a", "b"),), "c.jsonl, line 1") for image in (tmp_path, None))
    check_text_only(arguments, recipe, Mixture((), (of_image,), 0, (), {}), processes)
    mixture = Mixture((), (of_image, of_text), 0, (), {})
    if refused is None:
        check_text_only(arguments, recipe, mixture, processes)
        return
    with pytest.raises(RecipeError, match=f"c.jsonl, line 1: chat without an image cannot be .* with {refused} in"):
        check_text_only(arguments, recipe, mixture, processes)


@pytest.mark.parametrize(
    ("method", "fsdp", "zero_stage", "is_refused"),
    [
        ("pix2emb", True, None, True),
        ("pix2emb", None, 3, True),
        ("pix2emb", None, 2, False),
        ("pix2emb", None, None, False),
        ("ppg", True, None, False),
    ],
)
def test_location_heads_are_not_trained_in_parts(tmp_path, fast_vlm, method, fsdp, zero_stage, is_refused):
    recipe = make_recipe(tmp_path, fast_vlm, f"method={method}")
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    arguments = SimpleNamespace(fsdp=fsdp, deepspeed_plugin=plugin, bf16=False, fp16=False)
    if not is_refused:
        check_locations(arguments, recipe)
        return
    with pytest.raises(RecipeError, match="pix2emb cannot be trained under FSDP or ZeRO-3, which hold its location"):
        check_locations(arguments, recipe)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("method", "refused"),
    [("pix2emb", "box decoder of pix2emb"), ("{box_loss: 0.5}", r"of method\.box_loss computes"), ("ppg", None)],
)
def test_heads_in_float32_are_not_trained_where_deepspeed_casts_them(tmp_path, fast_vlm, method, refused, precision):
    recipe = make_recipe(tmp_path, fast_vlm, f"method={method}")
    settings = {"fsdp": None, "bf16": False, "fp16": False, precision: True}
    check_locations(SimpleNamespace(**settings, deepspeed_plugin=None), recipe)
    arguments = SimpleNamespace(**settings, deepspeed_plugin=SimpleNamespace(zero_stage=2))
    if refused is None:
        check_locations(arguments, recipe)
        return
    with pytest.raises(RecipeError, match=rf"training\.deepspeed: with bf16 or fp16 .*{refused}"):
        check_locations(arguments, recipe)


@pytest.mark.parametrize(
    ("overrides", "tokens", "width"),
    [
        (["method=ppg"], None, None),
        (["method=pix2emb", "method.sam_tokens=3"], 3, 16),
        (["method=pix2emb", "method.prompt=box"], 1, None),
    ],
)
def test_location_heads_have_the_width_of_the_segmenters_prompt_tokens(tmp_path, fast_vlm, overrides, tokens, width):
    segmenter = load_segmenter(str(save_tiny_sam(tmp_path / "sam.pth")), "cpu", "float32")
    settings = location_settings(make_recipe(tmp_path, fast_vlm, *overrides), segmenter)
    if tokens is None:
        assert settings is None
        return
    assert (settings.sam_tokens, settings.sam_width) == (tokens, width)
    expected = segmenter.not_a_point if width == 16 else None
    assert settings.not_a_point is expected or torch.equal(settings.not_a_point, expected)


def test_another_number_of_processes_than_were_launched_is_refused():
    with pytest.raises(LaunchError, match=r"1 process\(es\) were launched, but the trainer runs in 2"):
        check_launch(SimpleNamespace(world_size=2, device=torch.device("cpu")), "cpu", SINGLE_PROCESS)
