from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.errors import DeviceMemoryError
from sam4mllm.geometry import Box, SamPrompt, box_of_mask
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.families import family_of
from sam4mllm.segmenters.frame import InputFrame
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.targets.sampling import draw_groups, jittered_boxes, seeded_rng
from sam4mllm.targets.scoring import Candidate, coarse_iou, prompt_batch, score_groups
from sam4mllm.testing import tiny_sam, tiny_segmenter_model

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)


SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "sam": lambda: SegmentAnything(tiny_sam()),
    "sam2": lambda: TransformersSam(tiny_segmenter_model("sam2"), family_of("sam2")),
    "box": lambda: BoxSegmenter(points_cut=True),
}


def plain_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 0.0


def candidate(number: int, groups: int = 5, positives: int = 2, boxes: int | None = 1) -> Candidate:
    truth = np.zeros((48, 70), dtype=bool)
    truth[5 + number : 25, 8 : 30 + 9 * number] = True
    truth[10:15, 12:20] = False
    box = box_of_mask(truth)
    assert box is not None
    drawn = draw_groups(
        truth, box, seeded_rng(0, "points", str(number)), groups=groups, positives=positives, negatives=1, margin=0.1
    )
    rng = seeded_rng(0, "boxes", str(number))
    boxes_xyxy = jittered_boxes(box, (70, 48), rng, share=0.2, count=boxes or 1)
    return Candidate(truth, drawn, None if boxes is None else boxes_xyxy, boxes_xyxy)


def one_by_one(segmenter: Segmenter, item: Candidate) -> tuple[list[float], float]:
    """Compute the scores one prompt at a time with `decode` and `masks`, and the IoU in numpy."""
    embeddings = segmenter.embed([IMAGE])

    def iou(prompt: SamPrompt) -> float:
        mask = segmenter.masks(segmenter.decode(embeddings, [(0, prompt)]))[0]
        return plain_iou(mask.numpy(), item.truth)

    boxes = [None] if item.boxes_xyxy is None else [Box(*map(float, box)) for box in item.boxes_xyxy]
    groups = [
        float(np.mean([iou(SamPrompt(box, item.groups.points(group))) for box in boxes]))
        for group in range(len(item.groups))
    ]
    box_only = [iou(SamPrompt(Box(*map(float, box)))) for box in item.box_only_xyxy]
    return groups, float(np.mean(box_only))


@pytest.mark.parametrize("boxes", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize("kind", ["sam", "sam2", "box"])
def test_scores_equal_those_of_prompts_decoded_one_by_one(kind: str, batch_size: int, boxes: int | None) -> None:
    segmenter: Segmenter = SEGMENTERS[kind]()
    candidates = [candidate(number, boxes=boxes) for number in range(3)]
    scores = score_groups(segmenter, segmenter.embed([IMAGE]), candidates, batch_size)
    assert len(scores) == 3
    for score, item in zip(scores, candidates, strict=True):
        groups, box_only = one_by_one(segmenter, item)
        np.testing.assert_allclose(score.ious, groups, atol=2e-3)
        assert score.box_iou == pytest.approx(box_only, abs=2e-3)
        assert score.ious.dtype == np.float32


def test_no_candidates_give_no_scores() -> None:
    segmenter = BoxSegmenter()
    assert score_groups(segmenter, segmenter.embed([IMAGE]), [], 8) == []


def test_groups_without_points_have_the_score_of_the_box() -> None:
    segmenter = BoxSegmenter()
    truth = np.zeros((48, 70), dtype=bool)
    truth[10:20, 10:20] = True
    drawn = draw_groups(
        truth, Box(10, 10, 20, 20), seeded_rng(0, "", ""), groups=4, positives=0, negatives=0, margin=0.1
    )
    box = np.array([[10, 10, 20, 15]], dtype=np.float32)
    (score,) = score_groups(segmenter, segmenter.embed([IMAGE]), [Candidate(truth, drawn, box, box)], 8)
    assert score.box_iou == 0.5
    assert score.ious.tolist() == [0.5] * 4


@settings(max_examples=60)
@given(
    size_wh=st.tuples(st.integers(2, 80), st.integers(2, 80)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_the_iou_in_a_window_equals_that_of_the_full_image(size_wh: tuple[int, int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    upsampling = InputFrame(64).upsampling(size_wh, 16)
    coarse = torch.rand(3, 16, 16, generator=generator) - 1
    coarse[torch.rand(3, 16, 16, generator=generator) < share] += 2
    truth = torch.rand(size_wh[1], size_wh[0], generator=generator) < 0.3
    expected = [plain_iou(mask.numpy(), truth.numpy()) for mask in upsampling.masks(coarse)]
    # One pixel with a logit near 0 may flip by rounding.
    tolerance = 1.01 / max(int(truth.sum()), 1)
    np.testing.assert_allclose(coarse_iou(coarse, truth, upsampling).numpy(), expected, atol=tolerance)


def test_iou_of_hand_made_masks() -> None:
    upsampling = BoxSegmenter(side=8).upsampling((8, 8))
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[:4, :4] = True
    coarse = torch.full((4, 8, 8), -1.0)
    coarse[0, :4, :4] = 1
    coarse[1, :4, 2:6] = 1
    coarse[2, 6:, 6:] = 1
    torch.testing.assert_close(coarse_iou(coarse, truth, upsampling), torch.tensor([1.0, 8 / 24, 0.0, 0.0]))
    empty = torch.full((1, 8, 8), -1.0)
    assert coarse_iou(empty, truth, upsampling).tolist() == [0.0]
    assert coarse_iou(empty, torch.zeros(8, 8, dtype=torch.bool), upsampling).tolist() == [0.0]


def test_ignored_pixels_do_not_count_in_the_iou() -> None:
    upsampling = BoxSegmenter(side=8).upsampling((8, 8))
    truth, counted = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    truth[:4, :4], counted[:, 4:] = True, False
    coarse = torch.full((2, 8, 8), -1.0)
    coarse[0, :4] = 1
    coarse[1, :, 2:6] = 1
    torch.testing.assert_close(coarse_iou(coarse, truth, upsampling), torch.tensor([16 / 32, 8 / 40]))
    torch.testing.assert_close(coarse_iou(coarse, truth, upsampling, counted), torch.tensor([1.0, 8 / 24]))


def test_one_pixel_in_common_has_iou_1_and_no_pixel_in_common_0() -> None:
    upsampling = BoxSegmenter(side=8).upsampling((8, 8))
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[3, 5] = True
    coarse = torch.full((2, 8, 8), -1.0)
    coarse[0, 3, 5] = coarse[1, 4, 5] = 1
    ious = coarse_iou(coarse, truth, upsampling)
    assert ious.tolist() == [1.0, 0.0] and ious.dtype == torch.float32
    assert coarse_iou(-coarse.abs(), truth, upsampling).tolist() == [0.0, 0.0]


def test_the_scores_of_two_boxes_are_averaged_and_a_batch_of_prompts_is_kept_for_later_images() -> None:
    segmenter, batch = BoxSegmenter(), prompt_batch(3)
    truth = np.zeros((48, 70), dtype=bool)
    truth[10:20, 10:20] = True
    drawn = draw_groups(
        truth, Box(10, 10, 20, 20), seeded_rng(0, "", ""), groups=2, positives=1, negatives=0, margin=0.1
    )
    boxes = np.array([[10, 10, 20, 20], [10, 10, 20, 15]], dtype=np.float32)
    ignored = np.zeros((48, 70), dtype=bool)
    ignored[15:20] = True
    items = [
        Candidate(truth, drawn, boxes, boxes[1:]),
        Candidate(truth & ~ignored, drawn, boxes, boxes[1:], ignored),
    ]
    first, second = score_groups(segmenter, segmenter.embed([IMAGE]), items, batch)
    assert (first.ious.tolist(), first.box_iou) == ([0.75, 0.75], 0.5)
    assert (second.ious.tolist(), second.box_iou) == ([1.0, 1.0], 1.0)
    assert first.ious.dtype == np.float32 and isinstance(first.box_iou, float) and batch.size == 3


def test_too_little_memory_for_one_prompt_is_an_error_that_names_what_to_do() -> None:
    batch = prompt_batch(2)

    def fail(part: object) -> None:
        raise MemoryError("no room")

    with pytest.raises(DeviceMemoryError) as error:
        list(batch.map([1, 2], fail))
    advice = "free memory on the device, or use a smaller segmenter or smaller images"
    assert str(error.value) == f"out of memory with one of the prompts alone: {advice} (no room)"
