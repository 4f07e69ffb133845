"""EmbeddingCache: equal results to the segmenter in it, and each image embedded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.base import Embeddings
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.testing import save_tiny_sam


class Counting(BoxSegmenter):
    """Counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def embed(self, images: Sequence[np.ndarray]) -> Embeddings:
        self.calls.append(len(images))
        return super().embed(images)


def image(number: int, size_wh: tuple[int, int] = (30, 20)) -> np.ndarray:
    return np.full((size_wh[1], size_wh[0], 3), number, dtype=np.uint8)


def test_masks_are_those_of_the_segmenter_in_any_order_of_the_images(tmp_path: Path) -> None:
    segmenter = load_segmenter(save_tiny_sam(tmp_path / "sam.pth"))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8) for index in range(3)]
    cache = EmbeddingCache(segmenter, size=8)
    assert (cache.fingerprint, cache.device) == (segmenter.fingerprint, segmenter.device)
    cache.embed(images[:2])
    requests = [(index, SamPrompt(Box(3, 2, 20, 15), (Point(8, 7, 1), Point(22, 17, 0)))) for index in (2, 0, 1)]
    order = [images[2], images[0], images[1]]
    ours, plain = (each.decode(each.embed(order), requests) for each in (cache, segmenter))
    assert ours.sizes_wh == plain.sizes_wh
    torch.testing.assert_close(ours.low_res_logits, plain.low_res_logits)
    assert all(map(torch.equal, cache.masks(ours), segmenter.masks(plain)))


def test_an_image_is_embedded_once_whatever_file_it_comes_from() -> None:
    segmenter = Counting()
    cache = EmbeddingCache(segmenter, size=8)
    assert cache.embed([image(1), image(2), image(1)]).sizes_wh == ((30, 20),) * 3
    cache.embed([image(2).copy(), image(1)])
    cache.embed([image(1), image(3)])
    assert segmenter.calls == [2, 1]


def test_images_of_equal_bytes_and_other_sizes_are_other_images() -> None:
    cache = EmbeddingCache(Counting(), size=8)
    assert cache.embed([image(1), image(1, (20, 30))]).sizes_wh == ((30, 20), (20, 30))


def test_the_images_used_last_are_kept() -> None:
    segmenter = Counting()
    cache = EmbeddingCache(segmenter, size=2)
    for numbers in [(1, 2), (1,), (3,), (1,), (2,)]:
        cache.embed([image(number) for number in numbers])
    assert segmenter.calls == [2, 1, 1]
    # More images than the cache holds are returned nevertheless.
    assert len(cache.embed([image(number) for number in range(5)])) == 5


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        EmbeddingCache(BoxSegmenter(), size=0)
