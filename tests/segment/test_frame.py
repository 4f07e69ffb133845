import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from sam4mllm.segment.frame import InputFrame
from tests.tiny_sam import tiny_sam

SIZES_WH = [(64, 64), (64, 40), (31, 64), (100, 75), (17, 90), (300, 1), (5, 3)]


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_resizing_is_that_of_segment_anything(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    frame = InputFrame(64)
    theirs = ResizeLongestSide(64)
    # A line of one pixel would vanish in theirs; ours keeps one pixel.
    expected_hw = tuple(max(side, 1) for side in theirs.get_preprocess_shape(height, width, 64))
    assert frame.resized_wh(size_wh) == expected_hw[::-1]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = frame.resize(image)
    assert resized.shape == (*expected_hw, 3)
    if 0 not in theirs.get_preprocess_shape(height, width, 64):
        np.testing.assert_array_equal(resized, theirs.apply_image(image))


def test_scale_brings_the_far_corner_to_the_far_corner() -> None:
    frame = InputFrame(64)
    scale = frame.scale_xy([(100, 75), (64, 64), (17, 90)])
    corners = scale * torch.tensor([[100.0, 75.0], [64.0, 64.0], [17.0, 90.0]])
    expected = torch.tensor([frame.resized_wh(size) for size in [(100, 75), (64, 64), (17, 90)]]).float()
    torch.testing.assert_close(corners, expected)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_upsampling_is_that_of_segment_anything(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    frame = InputFrame(64)
    coarse = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    resized_width, resized_height = frame.resized_wh(size_wh)
    expected = tiny_sam().postprocess_masks(coarse[:, None], (resized_height, resized_width), (height, width))[:, 0]
    torch.testing.assert_close(frame.upsampling(size_wh, 16).logits(coarse), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_upsampling_weights_are_means(size_wh: tuple[int, int]) -> None:
    upsampling = InputFrame(64).upsampling(size_wh, 16)
    for weights in (upsampling.rows, upsampling.columns):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))


@settings(max_examples=60, deadline=None)
@given(
    size_wh=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.9]),
)
def test_a_window_holds_every_pixel_and_its_logits_are_exact(size_wh: tuple[int, int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    upsampling = InputFrame(64).upsampling(size_wh, 16)
    coarse = torch.rand(2, 16, 16, generator=generator) - 1
    coarse[torch.rand(2, 16, 16, generator=generator) < share] += 2
    whole = upsampling.logits(coarse)
    window = upsampling.window(coarse)
    if window is None:
        assert not (whole > 0).any()
        return
    torch.testing.assert_close(upsampling.logits_in(coarse, window), whole[:, window.rows, window.columns])
    outside = whole.clone()
    outside[:, window.rows, window.columns] = 0
    assert not (outside > 0).any()
