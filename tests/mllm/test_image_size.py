"""The recipe's limits in each family's own words, on real image processors."""

import json

import numpy as np
import pytest
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    Qwen2VLImageProcessor,
    SmolVLMImageProcessor,
)

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.image_size import keep_whole, limit_images, native_coordinates
from sam4mllm.mllm.loading import load_processor
from sam4mllm.testing import save_tiny_mllm


class Processor:
    def __init__(self, image_processor):
        self.image_processor = image_processor


def limited(model_type, image_processor, **limits):
    limit_images(Processor(image_processor), FAMILIES[model_type].image_size, limits, model_type)
    return image_processor


def test_the_largest_area_of_qwen_is_its_longest_edge():
    images = limited("qwen2_5_vl", Qwen2VLImageProcessor(), max_pixels=401408)
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (3136, 401408)
    coordinates = native_coordinates(FAMILIES["qwen2_5_vl"].coordinates, Processor(images))
    assert coordinates.frame == ResizedGrid(28, 3136, 401408)


def test_the_least_area_of_qwen_is_its_shortest_edge():
    images = limited("qwen3_vl", Qwen2VLImageProcessor(patch_size=16), min_pixels=65536)
    assert images.size["shortest_edge"] == 65536


def test_internvls_area_counts_its_tiles():
    images = limited("internvl", GotOcr2ImageProcessor(size={"height": 448, "width": 448}), max_pixels=4 * 448**2 + 5)
    assert (images.min_patches, images.max_patches) == (1, 4)


def test_llava_nexts_area_chooses_among_its_shapes():
    shapes = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    images = limited("llava_next", LlavaNextImageProcessor(image_grid_pinpoints=shapes), max_pixels=336 * 1008)
    assert images.image_grid_pinpoints == [[336, 672], [672, 336], [1008, 336], [336, 1008]]


def test_smolvlms_longest_side():
    assert limited("smolvlm", SmolVLMImageProcessor(), longest_side=728).size["longest_edge"] == 728


@pytest.mark.parametrize("size_wh", [(96, 32), (32, 96)])
@pytest.mark.parametrize("processor_class", [LlavaImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil])
def test_llava_sees_a_long_image_to_its_ends(processor_class, size_wh):
    square = {"height": 32, "width": 32}
    processor = Processor(processor_class(size={"shortest_edge": 32}, crop_size=square, image_mean=[0.5, 0.25, 0.125]))
    black = np.zeros((*size_wh[::-1], 3), np.uint8)
    marked = black.copy()
    marked[:6, :6] = 255

    def seen(image):
        return np.asarray(processor.image_processor(image)["pixel_values"][0])

    before = seen(black)
    assert np.array_equal(seen(marked), before)
    keep_whole(processor)
    assert not np.array_equal(seen(marked), seen(black))
    assert seen(black).shape == (3, 32, 32)
    # A square loses nothing, and looks as it did.
    assert np.allclose(seen(black[:32, :32]), before, atol=1e-5)


def test_a_image_that_is_squeezed_to_a_square_stays_squeezed():
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor = Processor(images)
    keep_whole(processor)
    assert processor.image_processor is images


def test_a_processor_that_pads_is_saved_and_loaded_as_such(tmp_path):
    base = save_tiny_mllm("llava", tmp_path / "base")
    saved = json.loads((base / "processor_config.json").read_text())["image_processor"]
    assert saved["image_processor_type"] == "CLIPImageProcessor"
    processor, _ = load_processor(str(base))
    processor.save_pretrained(tmp_path / "run")
    again = AutoProcessor.from_pretrained(tmp_path / "run").image_processor
    assert again.to_dict() == processor.image_processor.to_dict() and again.do_pad


@pytest.mark.parametrize(
    ("model_type", "images", "limits", "message"),
    [
        ("qwen3_vl", Qwen2VLImageProcessor(), {"longest_side": 9}, "limited by model.min_pixels and model.max_pixels"),
        ("gemma3", Qwen2VLImageProcessor(), {"max_pixels": 9}, "brings every image to one size.*leave it out"),
        ("qwen3_vl", Qwen2VLImageProcessor(), {"max_pixels": 700}, "model.max_pixels: 700 is below the least size"),
        ("internvl", GotOcr2ImageProcessor(), {"max_pixels": 700}, "leaves 0 tiles"),
        ("smolvlm", SmolVLMImageProcessor(), {"longest_side": 5}, "below one tile of"),
        (
            "llava_next",
            LlavaNextImageProcessor(image_grid_pinpoints=[[336, 672], [672, 672]]),
            {"max_pixels": 700},
            "no shape of tiles has 0 to 700 pixels; the model's own have 225792 to 451584",
        ),
    ],
)
def test_limits_that_cannot_be_had(model_type, images, limits, message):
    with pytest.raises(RecipeError, match=message) as caught:
        limited(model_type, images, **limits)
    assert "\n" not in str(caught.value)
