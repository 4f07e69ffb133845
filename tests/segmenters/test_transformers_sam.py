from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.segmenters.families import FAMILIES, family_of
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing import tiny_segmenter_model

NAMES = [family.name for family in FAMILIES]
IMAGE = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
BOX, OTHER_BOX = SamPrompt(Box(10, 5, 60, 50)), SamPrompt(Box(70, 40, 99, 70))


def tiny(name: str, seed: int = 0, **settings: Any) -> TransformersSam:
    return TransformersSam(tiny_segmenter_model(name, seed), family_of(name), **settings)


@pytest.mark.parametrize("name", NAMES)
def test_different_prompts_and_images_give_different_logits(name: str) -> None:
    segmenter = tiny(name)
    embeddings = segmenter.embed([IMAGE, 255 - IMAGE])
    decoded = segmenter.decode(embeddings, [(0, BOX), (0, OTHER_BOX), (1, BOX)])
    for other in (1, 2):
        assert (decoded.low_res_logits[0] - decoded.low_res_logits[other]).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_depends_on_weights_dtype_and_pixel_statistics(name: str) -> None:
    ours = tiny(name).fingerprint
    assert tiny(name).fingerprint == ours
    assert tiny(name, seed=1).fingerprint != ours
    assert tiny(name, dtype=torch.bfloat16).fingerprint != ours
    assert tiny(name, pixel_statistics=([0.1] * 3, [0.2] * 3)).fingerprint != ours


def test_the_fingerprint_depends_on_the_configuration_and_not_on_its_provenance() -> None:
    changed = tiny_segmenter_model("sam2")
    changed.config.mask_decoder_config.num_attention_heads = 1
    moved = tiny_segmenter_model("sam2")
    moved.config._name_or_path = "/another/folder"
    ours, family = tiny("sam2").fingerprint, family_of("sam2")
    assert TransformersSam(changed, family).fingerprint != ours
    assert TransformersSam(moved, family).fingerprint == ours


@pytest.mark.parametrize("name", ["sam", "sam2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    segmenter = tiny(name, dtype=dtype)
    assert {weight.dtype for weight in segmenter.model.prompt_encoder.parameters()} == {torch.float32}
    assert {weight.dtype for weight in segmenter.model.mask_decoder.parameters()} == {dtype}
    decoded = segmenter.decode(segmenter.embed([IMAGE]), [(0, BOX)])
    assert decoded.low_res_logits.dtype == decoded.iou.dtype == torch.float32


def test_an_array_that_is_not_an_image_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"an image is \(H, W, 3\) uint8"):
        tiny("sam2").embed([np.zeros((4, 4), np.uint8)])
