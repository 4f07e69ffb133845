"""MaskTrainer: the masks of inference with gradients; and trained mask decoders at inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.mask_decoder import MaskTrainer, with_mask_decoder
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from sam4mllm.utils.hub import MASK_DECODER

IMAGES = [
    np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8),
    np.random.default_rng(1).integers(0, 256, (64, 40, 3), dtype=np.uint8),
]
INDEX = torch.tensor([0, 1, 0])
BOXES = torch.tensor([[10.0, 5, 60, 50], [3, 4, 20, 30], [70, 40, 99, 70]])


def tokens(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("boxes", [None, BOXES])
@pytest.mark.parametrize("cached", [False, True])
def test_logits_are_those_of_inference(boxes: torch.Tensor | None, cached: bool) -> None:
    segmenter = SegmentAnything(tiny_sam())
    used = EmbeddingCache(segmenter, size=2) if cached else segmenter
    embeddings = used.embed(IMAGES)
    logits = MaskTrainer(used)(embeddings, INDEX, boxes, tokens())
    expected = segmenter.decode_embedded(embeddings, INDEX, boxes, tokens()).low_res_logits
    for row, image in enumerate(INDEX.tolist()):
        height, width = segmenter.frame.extent_hw(embeddings.sizes_wh[image], 32)
        ours, theirs = logits[row, :height, :width], expected[row, :height, :width]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_reach_the_tokens_and_the_weights_of_a_trained_decoder(trained: bool) -> None:
    segmenter = SegmentAnything(tiny_sam())
    masks, prompts = MaskTrainer(segmenter, trained), tokens().requires_grad_()
    masks(segmenter.embed(IMAGES), INDEX, BOXES, prompts).square().sum().backward()
    assert prompts.grad is not None and (prompts.grad.abs().sum(dim=(1, 2)) > 0).all()
    weights = list(masks.parameters())
    assert weights and all(weight.requires_grad is trained for weight in weights)
    assert any(weight.grad is not None and weight.grad.any() for weight in weights) is trained
    assert all(weight.grad is None for weight in segmenter.sam.parameters())
    assert {name.partition(".")[0] for name in masks.state_dict()} == {"decoder"}


def test_targets_are_the_masks_on_the_cells_of_the_image() -> None:
    segmenter = SegmentAnything(tiny_sam())
    masks = [np.zeros((75, 100), dtype=bool), np.ones((64, 40), dtype=bool)]
    masks[0][20:60, 30:80] = True
    shares, inside = MaskTrainer(segmenter).targets(masks, torch.device("cpu"))
    # (100, 75) fills 64 x 48 pixels of the square, and so 32 x 24 cells; (40, 64) fills 20 x 32 cells.
    assert inside.sum(dim=(1, 2)).tolist() == [32 * 24, 20 * 32]
    assert inside[0, :24].all() and not inside[0, 24:].any() and inside[1, :, :20].all() and not inside[1, :, 20:].any()
    assert not shares[~inside].any() and torch.all(shares[1][inside[1]] == 1)
    # Each cell is 3.125 pixels wide, so the sum of all shares is the area of the mask in cells.
    assert shares[0].sum().item() == pytest.approx(40 * 50 / 3.125**2, rel=1e-5)
    upsampled = segmenter.upsampling((100, 75)).masks(shares[:1] - 0.5)[0].numpy()
    assert (upsampled & masks[0]).sum() / (upsampled | masks[0]).sum() > 0.95


@pytest.mark.parametrize("size_wh", [(100, 75), (17, 90), (300, 1), (5, 3), (64, 64)])
def test_an_image_covers_exactly_the_cells_whose_center_is_on_it(size_wh: tuple[int, int]) -> None:
    segmenter = SegmentAnything(tiny_sam())
    rows, columns = segmenter.frame.coverage(size_wh, 32)
    assert (rows.shape, columns.shape) == ((32, size_wh[1]), (32, size_wh[0]))
    width, height = segmenter.frame.resized_wh(size_wh)
    centers = torch.arange(32) * 2 + 1
    for matrix, length in ((rows, height), (columns, width)):
        torch.testing.assert_close(matrix.sum(dim=1), (centers < length).float())


def test_a_trained_decoder_gives_other_masks_and_another_fingerprint(tmp_path: Path) -> None:
    segmenter = SegmentAnything(tiny_sam())
    embeddings, prompt = segmenter.embed(IMAGES), [(0, SamPrompt(Box(10, 5, 60, 50)))]
    before = segmenter.decode(embeddings, prompt).low_res_logits
    masks = MaskTrainer(segmenter, trained=True)
    save_file(masks.decoder.state_dict(), tmp_path / MASK_DECODER)
    assert with_mask_decoder(segmenter, tmp_path / MASK_DECODER).fingerprint == segmenter.fingerprint
    with torch.no_grad():
        for weight in masks.parameters():
            weight.add_(0.05)
    save_file(masks.decoder.state_dict(), tmp_path / MASK_DECODER)
    for trained in (
        with_mask_decoder(segmenter, tmp_path / MASK_DECODER),
        with_mask_decoder(EmbeddingCache(segmenter, size=2), masks.decoder.state_dict()),
    ):
        assert trained.fingerprint != segmenter.fingerprint
        torch.testing.assert_close(trained.embed(IMAGES).features[0], embeddings.features[0])
        decoded = trained.decode_embedded(embeddings, INDEX, BOXES, tokens()).low_res_logits
        expected = masks(embeddings, INDEX, BOXES, tokens()).detach()
        torch.testing.assert_close(decoded[0, :24], expected[0, :24], atol=1e-4, rtol=1e-4)
    assert torch.equal(segmenter.decode(embeddings, prompt).low_res_logits, before)


def test_other_segmenters_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"segment_anything checkpoint; the segmenter is a BoxSegmenter"):
        MaskTrainer(BoxSegmenter())
    with pytest.raises(ModelError, match=r"but the segmenter is a BoxSegmenter"):
        with_mask_decoder(BoxSegmenter(), {})
    (tmp_path / MASK_DECODER).write_bytes(b"no weights")
    segmenter = SegmentAnything(tiny_sam())
    with pytest.raises(ModelError, match=r"mask_decoder.safetensors: does not load as the mask decoder"):
        with_mask_decoder(segmenter, tmp_path / MASK_DECODER)
    with pytest.raises(ModelError, match=r"does not load as the mask decoder of this segmenter"):
        with_mask_decoder(segmenter, {"iou_token.weight": torch.zeros(1, 16)})
