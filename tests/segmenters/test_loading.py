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
from sam4mllm.testing.tiny_segmenters import save_tiny
from tests.segmenters.tiny_videos import save_video
from tests.tiny_sam import save_sam

IMAGE = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("sam2", tmp_path_factory.mktemp("home") / "sam2")


@pytest.fixture
def copy(sam2: Path, tmp_path: Path) -> Path:
    """A folder of the model to be spoilt."""
    return Path(shutil.copytree(sam2, tmp_path / "copy"))


def test_a_gpu_that_only_imitates_bfloat16_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert _dtype("auto", torch.device("cuda")) == torch.float32


def test_shapes_is_the_model_of_the_package() -> None:
    assert load_segmenter("shapes").fingerprint == load_checkpoint(models.path("segmenter")).fingerprint


def test_a_file_is_segment_anything(tmp_path: Path) -> None:
    file = save_sam(tmp_path / "sam.pth")
    for name in (file, str(file)):
        assert isinstance(load_segmenter(name), SegmentAnything)


def test_a_home_folder_is_found(sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sam2.parent))
    assert isinstance(load_segmenter("~/sam2"), TransformersSam)


def test_a_folder_is_the_model_that_its_config_says(sam2: Path) -> None:
    segmenter = load_segmenter(sam2)
    assert isinstance(segmenter, TransformersSam) and segmenter.family.name == "sam2"
    assert segmenter.dtype == torch.float32


@pytest.mark.parametrize("name", ["sam2", "edgetam", "sam3_tracker"])
def test_a_video_model_gives_its_image_model(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoder = save_video(name, tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        segmenter = load_segmenter(tmp_path)
    assert isinstance(segmenter, TransformersSam) and segmenter.family.name == name
    assert not caplog.records, "the video's own weights are no news"
    found = segmenter.model.mask_decoder.state_dict()
    assert found.keys() == decoder.keys() and all(torch.equal(found[key], decoder[key]) for key in decoder)
    decoded = segmenter.decode(segmenter.embed([IMAGE]), [(0, SamPrompt(Box(10, 5, 60, 50)))])
    assert segmenter.masks(decoded)[0].shape == (75, 100)


def test_the_type_of_the_stored_weights_does_not_matter(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    segmenter = load_segmenter(copy)
    assert segmenter.embed([IMAGE]).features[0].dtype == torch.float32


def test_the_checkpoints_own_pixel_statistics_count(copy: Path, sam2: Path) -> None:
    settings = {"image_processor_type": "Sam2ImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    told, usual = load_segmenter(copy), load_segmenter(sam2)
    assert isinstance(told, TransformersSam)
    black = np.zeros((8, 8, 3), np.uint8)
    torch.testing.assert_close(told.pixels([black])[0, :, 0, 0], torch.tensor([-0.2, -0.4, -0.6]))
    assert told.fingerprint != usual.fingerprint


def test_weights_without_a_place_are_told_in_a_line(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = copy / "model.safetensors"
    save_file(load_file(file) | {"head.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_segmenter(copy)
    assert [record.message for record in caplog.records] == [
        f"{copy}: 1 weights have no place in a Sam2Model: ['head.weight']"
    ]


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def without_a_kind(folder: Path) -> None:
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
    ("spoil", "says"),
    [
        (of_another_kind, "model type 'vit' is no segmenter that is known here; known are sam, sam_hq, sam2, "),
        (without_a_kind, "is no segmenter that is known here"),
        (without_config, "holds no config.json; give a folder made by transformers' save_pretrained"),
        (with_half_a_config, "does not load: "),
        (with_an_impossible_config, "does not load as a Sam2Model: "),
        (without_weights, "does not load as a Sam2Model: "),
        (with_cut_weights, "does not load as a Sam2Model: "),
        (without_some_weights, "no weights ['prompt_encoder.mask_embed.conv1.bias', "),
        (with_a_misshapen_weight, "misshapen weights ['mask_decoder.iou_token.weight'] (1 in all)"),
        (with_half_a_processor, "does not load as a Sam2Model: "),
    ],
)
def test_a_folder_that_does_not_do_is_told_in_one_line(
    spoil: Callable[[Path], None], says: str, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(copy)
    with pytest.raises(ModelError) as caught:
        load_segmenter(copy)
    assert says in str(caught.value) and str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the error says it all"


@pytest.mark.parametrize(
    "name", ["sam_vit_h", "sam_vit_h.pth", "checkpoints/sam_vit_h.pth", "./sam2", "/a/b/c", "{home}/none", "a/b/c", ""]
)
def test_a_name_of_nothing_says_what_may_be_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_segmenter(name.format(home=tmp_path))
    expected = "holds no config.json" if name == "" else "no segmenter checkpoint at"
    assert expected in str(caught.value)


def test_an_unknown_number_type_is_told(sam2: Path) -> None:
    with pytest.raises(ModelError, match="unknown number type 'int8'"):
        load_segmenter(sam2, "cpu", "int8")


def test_every_model_type_belongs_to_one_family() -> None:
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))


def test_a_hub_id_is_read_from_the_cache_and_told_where_it_is_not(sam2: Path, tmp_path: Path) -> None:
    """In a process of its own, because the Hub's library reads its settings when it is imported."""
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
    fingerprint, said = done.stdout.splitlines()
    assert fingerprint == load_segmenter(sam2).fingerprint
    assert said.startswith("the segmenter 'some/sam3' does not load: OSError: ")
    assert said.endswith("is the name right, and the Hub in reach?")
    assert done.stderr == ""
