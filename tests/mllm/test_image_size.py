"""The recipe's image size limits as settings of real image processors."""

import json

import numpy as np
import pytest
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    Gemma4ImageProcessor,
    Glm4vImageProcessor,
    GotOcr2ImageProcessor,
    Idefics2ImageProcessor,
    Lfm2VlImageProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    MiniCPMV4_6ImageProcessor,
    Molmo2ImageProcessor,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    SmolVLMImageProcessor,
)

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.image_size import (
    AREA,
    CROPS,
    LONGEST_SIDE,
    SLICES,
    SOFT_TOKENS,
    TILE_SHAPES,
    TILES,
    TOKENS_AND_TILES,
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


def resized_wh(images, size_wh):
    """The size of an image whose processor returns `image_grid_thw`."""
    pixels = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    _, rows, columns = images(pixels, return_tensors="pt")["image_grid_thw"][0].tolist()
    return columns * images.patch_size, rows * images.patch_size


@pytest.mark.parametrize(
    ("model_type", "images"), [("qwen3_vl", Qwen2VLImageProcessor), ("glm4v", Glm4vImageProcessor)]
)
def test_the_area_of_an_image_is_the_limit_however_many_frames_a_processor_counts(model_type, images):
    assert resized_wh(limited(model_type, images(), max_pixels=112 * 112), (560, 560)) == (112, 112)
    assert resized_wh(limited(model_type, images(), min_pixels=280 * 280), (56, 56)) == (280, 280)
    one_limit = limited(model_type, images(), max_pixels=280 * 280)
    assert resized_wh(limited(model_type, one_limit, min_pixels=140 * 140), (56, 56)) == (140, 140)
    assert resized_wh(one_limit, (2800, 2800)) == (280, 280)


def test_max_pixels_is_a_number_of_tokens_of_gemma_4():
    token = (16 * 3) ** 2
    for max_pixels, tokens in ((1120 * token, 1120), (1120 * token - 1, 560), (70 * token, 70)):
        images = limited("gemma4", Gemma4ImageProcessor(), max_pixels=max_pixels)
        assert images.max_soft_tokens == tokens
        counted = images(np.zeros((300, 500, 3), np.uint8))["num_soft_tokens_per_image"][0]
        assert counted <= tokens


@pytest.mark.parametrize(
    ("max_pixels", "tiles", "tokens"),
    [
        # 512 x 512 pixels are a tile, and 32 x 32 a token.
        (4 * 512**2 + 5, 4, 256),
        (2 * 512**2, 2, 256),
        (2 * 512**2 - 1, 1, 256),
        (100 * 32**2, 1, 100),
    ],
)
def test_max_pixels_limits_the_tiles_or_the_tokens_of_lfm2_vl(max_pixels, tiles, tokens):
    images = limited("lfm2_vl", Lfm2VlImageProcessor(), max_pixels=max_pixels)
    assert (images.max_tiles, images.max_image_tokens) == (tiles, tokens)
    inputs = images(np.zeros((1500, 1500, 3), np.uint8), return_tensors="pt", return_row_col_info=True)
    # A thumbnail is added to the tiles.
    assert len(inputs["pixel_values"]) == (1 if tiles == 1 else tiles + 1)
    padded = max(4 * tokens, 1024 if tiles > 1 else 0)
    assert inputs["pixel_values"].shape[1] == padded


def test_min_pixels_is_the_smallest_number_of_tokens_of_lfm2_vl():
    assert limited("lfm2_vl", Lfm2VlImageProcessor(), min_pixels=99 * 32**2 + 1).min_image_tokens == 100


@pytest.mark.parametrize(
    ("max_pixels", "crops"),
    [
        (378 * 378, 1),
        # Two crops are 644 x 378 pixels, three 910 x 378, four also 644 x 644 and 1176 x 378.
        (644 * 378, 2),
        (910 * 378, 3),
        (1176 * 378, 4),
        (1176 * 378 - 1, 3),
    ],
)
def test_max_pixels_limits_the_number_of_crops_of_molmo2(max_pixels, crops):
    images = limited("molmo2", Molmo2ImageProcessor(), max_pixels=max_pixels)
    assert images.max_crops == crops
    inputs = images(np.zeros((600, 3000, 3), np.uint8), return_tensors="pt")
    # The image at low resolution is added to the crops.
    assert inputs["image_num_crops"].tolist() == [crops + 1]


def test_max_pixels_limits_the_number_of_slices_of_minicpm_v():
    images = limited("minicpmv4_6", MiniCPMV4_6ImageProcessor(), max_pixels=4 * 448**2 + 5)
    assert images.max_slice_nums == 4
    assert len(images(np.zeros((1500, 1500, 3), np.uint8))["target_sizes"]) == 1 + 4


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (Qwen2VLImageProcessor(), AREA),
        (GotOcr2ImageProcessor(), TILES),
        (LlavaNextImageProcessor(), TILE_SHAPES),
        (SmolVLMImageProcessor(), LONGEST_SIDE),
        (Gemma4ImageProcessor(), SOFT_TOKENS),
        (Glm4vImageProcessor(), AREA),
        (Lfm2VlImageProcessor(), TOKENS_AND_TILES),
        (Molmo2ImageProcessor(), CROPS),
        (MiniCPMV4_6ImageProcessor(), SLICES),
        # A height and a width may be those of tiles, so nothing is said about the size of images.
        (LlavaImageProcessor(size={"height": 32, "width": 32}), UNKNOWN),
        # Its edges are sides, not areas.
        (Idefics2ImageProcessor(), UNKNOWN),
        (PixtralImageProcessor(), UNKNOWN),
    ],
)
def test_the_rule_of_an_unlisted_family_is_derived_from_its_image_processor(images, rule):
    assert image_size_rule(images) is rule


def test_an_unlisted_family_gets_its_limits_from_the_processor(tmp_path, monkeypatch):
    base = str(save_tiny_mllm("qwen2_vl", tmp_path / "base"))
    unlisted = {model_type: family for model_type, family in FAMILIES.items() if model_type != "qwen2_vl"}
    for module in ("families", "loading"):
        monkeypatch.setattr(f"sam4mllm.mllm.{module}.FAMILIES", unlisted)
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
        ("gemma4", Gemma4ImageProcessor(), {"min_pixels": 5}, "area of a number of tokens; .* by model.max_pixels$"),
        ("gemma4", Gemma4ImageProcessor(), {"max_pixels": 5}, r"smallest size of an image, 161280 pixels \(70 tokens"),
        ("lfm2_vl", Lfm2VlImageProcessor(), {"max_pixels": 5}, "0 tokens of 1024 pixels, but an image has at least 64"),
        ("molmo2", Molmo2ImageProcessor(), {"max_pixels": 5}, "5 is below one crop of 142884 pixels"),
        ("minicpmv4_6", MiniCPMV4_6ImageProcessor(), {"max_pixels": 5}, "5 is below one slice of 200704 pixels"),
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
