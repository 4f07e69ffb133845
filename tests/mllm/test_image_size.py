"""The recipe's image size limits as settings of real image processors."""

import json

import numpy as np
import pytest
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessor,
    Idefics2ImageProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    SmolVLMImageProcessor,
)

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.image_size import (
    AREA,
    FIXED,
    LONGEST_SIDE,
    TILE_SHAPES,
    TILES,
    UNKNOWN,
    image_size_rule,
    limit_images,
    native_coordinates,
    pad_instead_of_crop,
)
from sam4mllm.mllm.loading import load_processor
from sam4mllm.testing import save_tiny_mllm


class Processor:
    def __init__(self, image_processor):
        self.image_processor = image_processor


def limited(model_type, image_processor, **limits):
    limit_images(Processor(image_processor), FAMILIES[model_type].image_size, limits, model_type)
    return image_processor


def test_max_pixels_is_the_longest_edge_of_qwen():
    images = limited("qwen2_5_vl", Qwen2VLImageProcessor(), max_pixels=401408)
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (3136, 401408)
    coordinates = native_coordinates(FAMILIES["qwen2_5_vl"].coordinates, Processor(images))
    assert coordinates.frame == ResizedGrid(28, 3136, 401408)


def test_min_pixels_is_the_shortest_edge_of_qwen():
    images = limited("qwen3_vl", Qwen2VLImageProcessor(patch_size=16), min_pixels=65536)
    assert images.size["shortest_edge"] == 65536


def test_max_pixels_limits_the_number_of_tiles_of_internvl():
    images = limited("internvl", GotOcr2ImageProcessor(size={"height": 448, "width": 448}), max_pixels=4 * 448**2 + 5)
    assert (images.min_patches, images.max_patches) == (1, 4)


def test_max_pixels_selects_tile_shapes_of_llava_next():
    shapes = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    images = limited("llava_next", LlavaNextImageProcessor(image_grid_pinpoints=shapes), max_pixels=336 * 1008)
    assert images.image_grid_pinpoints == [[336, 672], [672, 336], [1008, 336], [336, 1008]]


def test_longest_side_of_smolvlm():
    assert limited("smolvlm", SmolVLMImageProcessor(), longest_side=728).size["longest_edge"] == 728


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (Qwen2VLImageProcessor(), AREA),
        (GotOcr2ImageProcessor(), TILES),
        (LlavaNextImageProcessor(), TILE_SHAPES),
        (SmolVLMImageProcessor(), LONGEST_SIDE),
        (LlavaImageProcessor(size={"height": 32, "width": 32}), FIXED),
        # Its edges are sides, not areas.
        (Idefics2ImageProcessor(), UNKNOWN),
        (PixtralImageProcessor(), UNKNOWN),
    ],
)
def test_the_rule_of_an_unlisted_family_is_derived_from_its_image_processor(images, rule):
    assert image_size_rule(images) is rule


def test_an_unlisted_family_gets_its_limits_from_the_processor(tmp_path, monkeypatch):
    base = str(save_tiny_mllm("qwen2_vl", tmp_path / "base"))
    monkeypatch.delitem(FAMILIES, "qwen2_vl")
    with pytest.warns(UserWarning, match="'qwen2_vl' is not in the table of families"):
        processor, family = load_processor(base, {"max_pixels": 1568})
    assert family.image_size is AREA and processor.image_processor.size["longest_edge"] == 1568
    with (
        pytest.warns(UserWarning, match="'qwen2_vl' is not in the table"),
        pytest.raises(
            RecipeError, match=r"keeps the aspect ratio.* limited by model\.min_pixels and model\.max_pixels"
        ),
    ):
        load_processor(base, {"longest_side": 9})


@pytest.mark.parametrize("size_wh", [(96, 32), (32, 96)])
@pytest.mark.parametrize("processor_class", [LlavaImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil])
def test_llava_gets_the_ends_of_a_long_image(processor_class, size_wh):
    square = {"height": 32, "width": 32}
    processor = Processor(processor_class(size={"shortest_edge": 32}, crop_size=square, image_mean=[0.5, 0.25, 0.125]))
    black = np.zeros((*size_wh[::-1], 3), np.uint8)
    marked = black.copy()
    marked[:6, :6] = 255

    def pixel_values(image):
        return np.asarray(processor.image_processor(image)["pixel_values"][0])

    before = pixel_values(black)
    assert np.array_equal(pixel_values(marked), before)
    pad_instead_of_crop(processor)
    assert not np.array_equal(pixel_values(marked), pixel_values(black))
    assert pixel_values(black).shape == (3, 32, 32)
    # A square image is processed as before.
    assert np.allclose(pixel_values(black[:32, :32]), before, atol=1e-5)


def test_a_processor_that_resizes_to_a_square_is_not_changed():
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor = Processor(images)
    pad_instead_of_crop(processor)
    assert processor.image_processor is images


def test_a_processor_that_pads_is_saved_and_loaded_as_such(tmp_path):
    base = save_tiny_mllm("llava", tmp_path / "base")
    saved = json.loads((base / "processor_config.json").read_text())["image_processor"]
    assert saved["image_processor_type"] == "CLIPImageProcessor"
    processor, _ = load_processor(str(base))
    processor.save_pretrained(tmp_path / "run")
    loaded = AutoProcessor.from_pretrained(tmp_path / "run").image_processor
    assert loaded.to_dict() == processor.image_processor.to_dict() and loaded.do_pad


@pytest.mark.parametrize(
    ("model_type", "images", "limits", "message"),
    [
        ("qwen3_vl", Qwen2VLImageProcessor(), {"longest_side": 9}, "limited by model.min_pixels and model.max_pixels"),
        ("gemma3", Qwen2VLImageProcessor(), {"max_pixels": 9}, "resizes every image to a fixed size.*leave it out"),
        ("qwen3_vl", Qwen2VLImageProcessor(), {"max_pixels": 700}, "model.max_pixels: 700 is below the smallest size"),
        ("internvl", GotOcr2ImageProcessor(), {"max_pixels": 700}, "allows 0 tiles of"),
        ("smolvlm", SmolVLMImageProcessor(), {"longest_side": 5}, "below one tile of"),
        (
            "llava_next",
            LlavaNextImageProcessor(image_grid_pinpoints=[[336, 672], [672, 672]]),
            {"max_pixels": 700},
            "no tile layout of this model has 0 to 700 pixels; its layouts have 225792 to 451584",
        ),
    ],
)
def test_limits_that_a_processor_does_not_support_are_refused(model_type, images, limits, message):
    with pytest.raises(RecipeError, match=message) as caught:
        limited(model_type, images, **limits)
    assert "\n" not in str(caught.value)
