import numpy as np
import pytest
import torch

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam

BOX_AND_POINTS = SamPrompt(Box(2, 3, 30, 20), (Point(10.5, 9.5, 1), Point(3.5, 4.5, 0)))
BOX_ONLY = SamPrompt(Box(5, 5, 25, 22))
POINTS_ONLY = SamPrompt(None, (Point(12.5, 8.5, 1),))
REQUESTS = [
    (2, BOX_AND_POINTS),
    (0, BOX_ONLY),
    (1, POINTS_ONLY),
    (0, BOX_AND_POINTS),
    (2, BOX_ONLY),
    (0, POINTS_ONLY),
    (1, BOX_AND_POINTS),
]


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in [(40, 30), (64, 50), (33, 70)]
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_batch_equals_its_prompts_decoded_one_by_one_in_order(batch_size: int) -> None:
    segmenter = SegmentAnything(tiny_sam())
    embeddings = segmenter.embed(images())
    decoded = segmenter.decode(embeddings, REQUESTS, batch_size=batch_size)
    masks = segmenter.masks(decoded)
    assert decoded.index.tolist() == [image for image, _ in REQUESTS]
    for position, (image, prompt) in enumerate(REQUESTS):
        single = segmenter.decode(segmenter.embed([images()[image]]), [(0, prompt)])
        torch.testing.assert_close(decoded.low_res_logits[position], single.low_res_logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoded.iou[position], single.iou[0], atol=1e-4, rtol=1e-4)
        assert masks[position].dtype == torch.bool
        assert tuple(masks[position].shape) == images()[image].shape[:2]
        # A pixel with a logit near 0 may flip by rounding.
        assert (masks[position] != segmenter.masks(single)[0]).float().mean() < 0.002


def test_masks_upsampled_in_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = SegmentAnything(tiny_sam())
    decoded = segmenter.decode(segmenter.embed(images()), REQUESTS)
    at_once = segmenter.masks(decoded)
    monkeypatch.setattr("sam4mllm.segmenters.base._MAX_UPSAMPLED_PIXELS", 2 * 40 * 30)
    in_steps = segmenter.masks(decoded)
    assert all(torch.equal(*pair) for pair in zip(at_once, in_steps, strict=True))


def test_a_segmenter_without_all_abstract_methods_cannot_be_made() -> None:
    class Incomplete(Segmenter):
        pass

    with pytest.raises(TypeError, match="decode_points"):
        Incomplete()  # type: ignore[abstract]


def test_no_requests_give_no_masks() -> None:
    segmenter = BoxSegmenter()
    decoded = segmenter.decode(segmenter.embed(images()), [])
    assert len(decoded.index) == len(decoded.iou) == len(decoded.low_res_logits) == 0
    assert segmenter.masks(decoded) == []


@pytest.mark.parametrize("image", [-1, 3])
def test_a_request_for_an_unknown_image_raises_an_error(image: int) -> None:
    segmenter = BoxSegmenter()
    with pytest.raises(IndexError, match=f"image {image}, but only 3 images"):
        segmenter.decode(segmenter.embed(images()), [(image, BOX_ONLY)])


def test_embeddings_can_be_sliced_and_concatenated() -> None:
    segmenter = SegmentAnything(tiny_sam())
    full = segmenter.embed(images())
    assert len(full) == 3
    assert full.sizes_wh == ((40, 30), (64, 50), (33, 70))
    assert full[-1].sizes_wh == ((33, 70),)
    assert full[1:].sizes_wh == ((64, 50), (33, 70))
    joined = Embeddings.concat([full[0], full[1:]])
    assert joined.sizes_wh == full.sizes_wh
    torch.testing.assert_close(joined.features[0], full.features[0])
    single = segmenter.embed([images()[1]])
    torch.testing.assert_close(single.features[0], full[1].features[0], atol=1e-4, rtol=1e-4)


def test_embeddings_with_a_wrong_number_of_sizes_raise_an_error() -> None:
    with pytest.raises(ValueError, match="a feature map has 2 images, but there are 1 sizes"):
        Embeddings((torch.zeros(2, 3),), ((4, 4),))


def test_the_box_segmenter_returns_boxes() -> None:
    segmenter = BoxSegmenter()
    decoded = segmenter.decode(segmenter.embed(images()), [(0, SamPrompt(Box(2, 3, 10, 8))), (1, POINTS_ONLY)])
    first, second = segmenter.masks(decoded)
    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[3:8, 2:10] = True
    assert torch.equal(first, expected)
    assert second.shape == (50, 64)
    assert second[8, 12] and int(second.sum()) == 16
    assert decoded.iou.tolist() == [1.0, 1.0]


def test_negative_points_cut_the_box_segmenters_mask_on_request() -> None:
    segmenter = BoxSegmenter(points_cut=True)
    prompts = [SamPrompt(Box(0, 0, 20, 20)), SamPrompt(Box(0, 0, 20, 20), (Point(10.5, 10.5, 0),))]
    masks = segmenter.masks(segmenter.decode(segmenter.embed(images()), [(0, prompt) for prompt in prompts]))
    assert int(masks[0].sum()) == 400
    assert int(masks[1].sum()) == 400 - 9
    assert not masks[1][10, 10]


def test_the_box_segmenters_fingerprint_depends_on_its_parameters_and_its_size_is_limited() -> None:
    assert BoxSegmenter().fingerprint == BoxSegmenter().fingerprint
    assert BoxSegmenter().fingerprint != BoxSegmenter(points_cut=True).fingerprint
    with pytest.raises(ValueError, match="up to 32 pixels"):
        BoxSegmenter(side=32).embed(images())
