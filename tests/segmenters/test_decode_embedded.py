"""decode_embedded and decode_tokens: embedded prompts are decoded as those that the prompt encoder embeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.families import FAMILIES, family_of
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing import tiny_sam, tiny_segmenter_model

IMAGES = [
    np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8),
    np.random.default_rng(1).integers(0, 256, (64, 40, 3), dtype=np.uint8),
]
BOXES = [Box(10, 5, 60, 50), Box(3, 4, 20, 30), Box(70, 40, 99, 70)]
INDEX = torch.tensor([0, 1, 0])


def of_transformers(name: str) -> TransformersSam:
    return TransformersSam(tiny_segmenter_model(name), family_of(name))


SEGMENTERS = {
    "segment_anything": lambda: SegmentAnything(tiny_sam()),
    "sam": lambda: of_transformers("sam"),
    "cache": lambda: EmbeddingCache(SegmentAnything(tiny_sam()), size=4),
}


def encoded_boxes(segmenter: Segmenter) -> torch.Tensor:
    """Return the prompt encoder's own tokens (3, 2, C) of BOXES."""
    scales = {64: (0.64, 1.0), 128: (1.28, 2.0)}
    plain: Any = segmenter.segmenter if isinstance(segmenter, EmbeddingCache) else segmenter
    model = plain.sam if isinstance(plain, SegmentAnything) else plain.model
    side = 64 if isinstance(plain, SegmentAnything) else 128
    boxes = torch.tensor(BOXES) * torch.tensor([scales[side][index] for index in INDEX])[:, None] - 0.5
    with torch.inference_mode():
        if isinstance(plain, SegmentAnything):
            sparse: torch.Tensor = model.prompt_encoder(points=None, boxes=boxes, masks=None)[0]
            return sparse
        sparse = model.prompt_encoder(input_points=None, input_labels=None, input_boxes=boxes[None], input_masks=None)[
            0
        ]
        return sparse[0]


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_tokens_of_a_box_give_the_mask_of_the_box(name: str) -> None:
    segmenter = SEGMENTERS[name]()
    embeddings = segmenter.embed(IMAGES)
    requests = list(zip(INDEX.tolist(), BOXES, strict=True))
    of_boxes = segmenter.decode(embeddings, [(image, SamPrompt(box)) for image, box in requests])
    tokens = encoded_boxes(segmenter)
    together = segmenter.decode_embedded(embeddings, INDEX, None, tokens)
    batched = segmenter.decode_tokens(
        embeddings, [(image, None, each) for (image, _), each in zip(requests, tokens, strict=True)], batch_size=2
    )
    for decoded in (together, batched):
        assert torch.equal(decoded.index, INDEX) and decoded.sizes_wh == embeddings.sizes_wh
        torch.testing.assert_close(decoded.low_res_logits, of_boxes.low_res_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoded.iou, of_boxes.iou, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_tokens_follow_those_of_the_box(name: str) -> None:
    segmenter = SEGMENTERS[name]()
    embeddings = segmenter.embed(IMAGES)
    # A second box as tokens behind those of the first is the prompt of four tokens.
    tokens = encoded_boxes(segmenter)
    other = tokens[[2, 2, 1]]
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    both = segmenter.decode_embedded(embeddings, INDEX, boxes, other)
    four = segmenter.decode_embedded(embeddings, INDEX, None, torch.cat([tokens, other], dim=1))
    torch.testing.assert_close(both.low_res_logits, four.low_res_logits, atol=1e-4, rtol=1e-4)
    box_alone = segmenter.decode(
        embeddings, [(int(image), SamPrompt(box)) for image, box in zip(INDEX, BOXES, strict=True)]
    )
    assert (both.low_res_logits - box_alone.low_res_logits).abs().max() > 0.01
    mixed = segmenter.decode_tokens(embeddings, [(0, BOXES[0], other[0]), (1, None, torch.cat([tokens[1], other[1]]))])
    torch.testing.assert_close(mixed.low_res_logits, both.low_res_logits[:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_not_a_point_is_what_the_prompt_encoder_pads_points_with(name: str) -> None:
    segmenter = SEGMENTERS[name]()
    embeddings = segmenter.embed(IMAGES[:1])
    plain: Any = segmenter.segmenter if isinstance(segmenter, EmbeddingCache) else segmenter
    encoder = (plain.sam if isinstance(plain, SegmentAnything) else plain.model).prompt_encoder
    assert segmenter.not_a_point.shape == (16,) and segmenter.not_a_point.dtype == torch.float32
    assert torch.equal(segmenter.not_a_point, encoder.not_a_point_embed.weight[0])
    assert len(segmenter.decode_tokens(embeddings, []).index) == 0


@pytest.mark.parametrize("name", ["BoxSegmenter", *(family.model_class for family in FAMILIES if family.name != "sam")])
def test_a_segmenter_without_embedded_prompts_is_refused_by_name(name: str) -> None:
    family = next((family.name for family in FAMILIES if family.model_class == name), None)
    segmenter: Segmenter = BoxSegmenter() if family is None else of_transformers(family)
    embeddings = segmenter.embed(IMAGES[:1])
    with pytest.raises(ModelError, match=rf"the segmenter {name} takes no prompts as embeddings; use a segment_any"):
        segmenter.decode_tokens(embeddings, [(0, None, torch.zeros(1, 16))])
    with pytest.raises(ModelError, match=name):
        _ = segmenter.not_a_point
