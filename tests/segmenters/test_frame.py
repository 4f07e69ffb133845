import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide
from transformers import Sam2ImageProcessor

from sam4mllm.segmenters.frame import InputFrame, SquareFrame
from sam4mllm.testing import tiny_sam

SIZES_WH = [(64, 64), (64, 40), (31, 64), (100, 75), (17, 90), (300, 1), (5, 3)]


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_resizing_equals_segment_anything(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    frame = InputFrame(64)
    theirs = ResizeLongestSide(64)
    # A very thin image gets 0 pixels in segment_anything; ours keeps at least one.
    expected_hw = tuple(max(side, 1) for side in theirs.get_preprocess_shape(height, width, 64))
    assert frame.resized_wh(size_wh) == expected_hw[::-1]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = frame.resize(image)
    assert resized.shape == (*expected_hw, 3)
    if 0 not in theirs.get_preprocess_shape(height, width, 64):
        np.testing.assert_array_equal(resized, theirs.apply_image(image))


def test_scaling_maps_the_far_corner_to_the_far_corner() -> None:
    frame = InputFrame(64)
    scale = frame.scale_xy([(100, 75), (64, 64), (17, 90)])
    corners = scale * torch.tensor([[100.0, 75.0], [64.0, 64.0], [17.0, 90.0]])
    expected = torch.tensor([frame.resized_wh(size) for size in [(100, 75), (64, 64), (17, 90)]]).float()
    torch.testing.assert_close(corners, expected)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_upsampling_equals_segment_anything(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    frame = InputFrame(64)
    coarse = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    resized_width, resized_height = frame.resized_wh(size_wh)
    expected = tiny_sam().postprocess_masks(coarse[:, None], (resized_height, resized_width), (height, width))[:, 0]
    torch.testing.assert_close(frame.upsampling(size_wh, 16).logits(coarse), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_a_square_frame_resizes_like_the_sam2_processor(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = SquareFrame(64).resize(image)
    processor = Sam2ImageProcessor(size={"height": 64, "width": 64}, do_normalize=False, do_rescale=False)
    theirs = (
        processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert ours.shape == theirs.shape == (64, 64, 3)
    # The libraries round to 8 bits differently.
    assert np.abs(ours.astype(float) - theirs).max() <= 1


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_a_square_frames_upsampling_equals_the_sam2_processor(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    coarse = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    (expected,) = Sam2ImageProcessor().post_process_masks([coarse[:, None]], [(height, width)], binarize=False)
    expected = expected[:, 0]
    torch.testing.assert_close(SquareFrame(64).upsampling(size_wh, 16).logits(coarse), expected, atol=1e-5, rtol=1e-5)


def test_a_square_frame_scales_each_side_independently() -> None:
    sizes_wh = [(100, 75), (17, 90)]
    expected = torch.tensor([[64 / 100, 64 / 75], [64 / 17, 64 / 90]])
    torch.testing.assert_close(SquareFrame(64).scale_xy(sizes_wh), expected)
    index = torch.tensor([1, 0, 1])
    torch.testing.assert_close(SquareFrame(64).prompt_scale_xy(sizes_wh, index), expected[index])


def test_pixels_are_normalized_and_the_padding_is_0() -> None:
    mean, std = torch.tensor([10.0, 20.0, 30.0])[:, None, None], torch.tensor([2.0, 4.0, 5.0])[:, None, None]
    image = np.full((32, 64, 3), (20, 40, 80), np.uint8)
    pixels = InputFrame(64).pixels([image, image[:, :32]], mean, std)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == torch.float32
    assert pixels[0, :, 31, 63].tolist() == pixels[1, :, 63, 63].tolist() == [5.0, 5.0, 10.0]
    assert not pixels[0, :, 32:].any()


@pytest.mark.parametrize("frame", [InputFrame(64), SquareFrame(64)])
@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_upsampling_weights_are_not_negative_and_sum_to_1(frame: InputFrame, size_wh: tuple[int, int]) -> None:
    upsampling = frame.upsampling(size_wh, 16)
    for weights in (upsampling.rows, upsampling.columns):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))


@pytest.mark.parametrize("frame", [InputFrame(64), SquareFrame(64)])
@pytest.mark.parametrize("coarse_side", [16, 32])
def test_an_image_depends_on_the_logits_of_its_extent_alone(frame: InputFrame, coarse_side: int) -> None:
    for size_wh in [*SIZES_WH, *((64, height) for height in range(1, 65))]:
        upsampling = frame.upsampling(size_wh, coarse_side)
        ends = [int((weights > 0).any(dim=0).nonzero().max()) + 1 for weights in (upsampling.rows, upsampling.columns)]
        for extent, end, resized in zip(
            frame.extent_hw(size_wh, coarse_side), ends, frame.resized_wh(size_wh)[::-1], strict=True
        ):
            # The cells that the resized image covers, and the neighbor after the last one.
            assert end <= extent <= min(-(-resized * coarse_side // 64) + 1, coarse_side)


@settings(max_examples=60)
@given(
    frame=st.sampled_from([InputFrame(64), SquareFrame(64)]),
    size_wh=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.9]),
)
def test_a_window_contains_all_masks_and_its_logits_are_exact(
    frame: InputFrame, size_wh: tuple[int, int], seed: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    upsampling = frame.upsampling(size_wh, 16)
    coarse = torch.rand(2, 16, 16, generator=generator) - 1
    coarse[torch.rand(2, 16, 16, generator=generator) < share] += 2
    full = upsampling.logits(coarse)
    window = upsampling.window(coarse)
    if window is None:
        assert not (full > 0).any()
        return
    torch.testing.assert_close(upsampling.logits_in(coarse, window), full[:, window.rows, window.columns])
    outside = full.clone()
    outside[:, window.rows, window.columns] = 0
    assert not (outside > 0).any()
