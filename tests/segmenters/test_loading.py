import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sam4mllm import models
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.segmenters.families import FAMILIES
from sam4mllm.segmenters.loading import _dtype, load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything, load_checkpoint
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing import save_tiny_sam, save_tiny_segmenter
from tests.segmenters.tiny_videos import save_video

IMAGE = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_segmenter("sam2", tmp_path_factory.mktemp("home") / "sam2")


@pytest.fixture
def copy(sam2: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder that a test may damage."""
    return Path(shutil.copytree(sam2, tmp_path / "copy"))


def test_auto_dtype_is_float32_on_gpus_that_emulate_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert _dtype("auto", torch.device("cuda")) == torch.float32


def test_shapes_is_the_embedded_model() -> None:
    assert load_segmenter("shapes").fingerprint == load_checkpoint(models.path("segmenter")).fingerprint


def test_a_file_is_loaded_by_segment_anything(tmp_path: Path) -> None:
    file = save_tiny_sam(tmp_path / "sam.pth")
    for name in (file, str(file)):
        assert isinstance(load_segmenter(name), SegmentAnything)


def test_a_tilde_is_expanded_to_the_home_folder(sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sam2.parent))
    assert isinstance(load_segmenter("~/sam2"), TransformersSam)


def test_config_json_decides_the_family_of_a_folder(sam2: Path) -> None:
    segmenter = load_segmenter(sam2)
    assert isinstance(segmenter, TransformersSam) and segmenter.family.name == "sam2"
    assert segmenter.dtype == torch.float32


@pytest.mark.parametrize("name", ["sam2", "edgetam", "sam3_tracker"])
def test_a_video_checkpoint_loads_as_its_image_model(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = save_video(name, tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        segmenter = load_segmenter(tmp_path)
    assert isinstance(segmenter, TransformersSam) and segmenter.family.name == name
    assert not caplog.records, "unused weights of the video model are expected, so no warning is logged"
    found = segmenter.model.mask_decoder.state_dict()
    assert found.keys() == decoder.keys() and all(torch.equal(found[key], decoder[key]) for key in decoder)
    decoded = segmenter.decode(segmenter.embed([IMAGE]), [(0, SamPrompt(Box(10, 5, 60, 50)))])
    assert segmenter.masks(decoded)[0].shape == (75, 100)


def test_weights_stored_as_bfloat16_are_cast_to_the_dtype(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    segmenter = load_segmenter(copy)
    assert segmenter.embed([IMAGE]).features[0].dtype == torch.float32


def test_pixel_statistics_come_from_the_checkpoints_processor(copy: Path, sam2: Path) -> None:
    settings = {"image_processor_type": "Sam2ImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    custom, default = load_segmenter(copy), load_segmenter(sam2)
    assert isinstance(custom, TransformersSam)
    black = np.zeros((8, 8, 3), np.uint8)
    torch.testing.assert_close(custom.pixels([black])[0, :, 0, 0], torch.tensor([-0.2, -0.4, -0.6]))
    assert custom.fingerprint != default.fingerprint


def test_unused_weights_are_logged_in_one_line(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = copy / "model.safetensors"
    save_file(load_file(file) | {"head.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_segmenter(copy)
    assert [record.message for record in caplog.records] == [
        f"{copy}: a Sam2Model does not use 1 weights: ['head.weight']"
    ]


def of_another_model_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def without_a_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "sam2"')


def with_an_impossible_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["mask_decoder_config"]["num_attention_heads"] = "two"
    (folder / "config.json").write_text(json.dumps(config))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def without_some_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    rest = {name: weight for name, weight in weights.items() if not name.startswith("prompt_encoder.mask_embed")}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_misshapen_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"mask_decoder.iou_token.weight": torch.zeros(1, 3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_half_a_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_another_model_type, "model type 'vit' is not a supported segmenter; supported are sam, sam_hq, sam2, "),
        (without_a_model_type, "is not a supported segmenter"),
        (without_config, "has no config.json; give a folder written by transformers' save_pretrained"),
        (with_half_a_config, "does not load: "),
        (with_an_impossible_config, "does not load as a Sam2Model: "),
        (without_weights, "does not load as a Sam2Model: "),
        (with_cut_weights, "does not load as a Sam2Model: "),
        (without_some_weights, "missing weights ['prompt_encoder.mask_embed.conv1.bias', "),
        (with_a_misshapen_weight, "mismatched weights ['mask_decoder.iou_token.weight'] (1 in all)"),
        (with_half_a_processor, "does not load as a Sam2Model: "),
    ],
)
def test_a_damaged_folder_raises_an_error_of_one_line(
    damage: Callable[[Path], None], message: str, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    with pytest.raises(ModelError) as caught:
        load_segmenter(copy)
    assert message in str(caught.value) and str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the libraries print nothing of their own"


@pytest.mark.parametrize(
    "name", ["sam_vit_h", "sam_vit_h.pth", "checkpoints/sam_vit_h.pth", "./sam2", "/a/b/c", "{home}/none", "a/b/c", ""]
)
def test_an_unknown_name_raises_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_segmenter(name.format(home=tmp_path))
    expected = "has no config.json" if name == "" else "no segmenter checkpoint at"
    assert expected in str(caught.value)


def test_an_unknown_dtype_raises_an_error(sam2: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int8'"):
        load_segmenter(sam2, "cpu", "int8")


def test_every_model_type_belongs_to_one_family() -> None:
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))


def test_a_hub_id_loads_from_the_cache_and_raises_an_error_if_it_is_not_there(sam2: Path, tmp_path: Path) -> None:
    """Run in a subprocess, because huggingface_hub reads its settings when it is imported."""
    repository = tmp_path / "hub/models--some--sam2"
    shutil.copytree(sam2, repository / "snapshots/0123456789abcdef")
    (repository / "snapshots/0123456789abcdef/preprocessor_config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789abcdef")
    program = (
        "from sam4mllm.errors import ModelError\n"
        "from sam4mllm.segmenters.loading import load_segmenter\n"
        "print(load_segmenter('some/sam2').fingerprint)\n"
        "try:\n    load_segmenter('some/sam3')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    variables = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True, env=variables
    )
    fingerprint, message = done.stdout.splitlines()
    assert fingerprint == load_segmenter(sam2).fingerprint
    assert message.startswith("the segmenter 'some/sam3' does not load: OSError: ")
    assert message.endswith("check its name, and the connection if it is a Hub id")
    assert done.stderr == ""
