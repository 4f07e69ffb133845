"""The attention of SAM's image encoder in parts gives segment_anything's features, with the same weights."""

from dataclasses import replace

import pytest
import torch

from sam4mllm.segmenters.encoder_attention import with_partial_attention
from sam4mllm.testing import TINY_SAM, tiny_sam


# Scores at once: a row of queries of a head, two rows, two heads of a window, and all.
@pytest.mark.parametrize("cached_scores", [1, 1100, 2**18])
@pytest.mark.parametrize("use_rel_pos", [True, False])
@torch.inference_mode()
def test_features_are_those_of_segment_anything(
    cached_scores: int, use_rel_pos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = tiny_sam(architecture=replace(TINY_SAM, use_rel_pos=use_rel_pos))
    generator = torch.Generator().manual_seed(0)
    for block in sam.image_encoder.blocks if use_rel_pos else ():
        # Relative positions begin at 0 and would not be noticed.
        for weight in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    pixels = torch.randn(2, 3, 64, 64, generator=generator)
    expected = sam.image_encoder(pixels)
    monkeypatch.setattr("sam4mllm.segmenters.encoder_attention._CACHED_SCORES", cached_scores)
    encoder = with_partial_attention(sam.image_encoder)
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-4)
    # The weights are shared, and the model itself is not changed.
    own = {name.replace("attn.whole", "attn"): weight for name, weight in encoder.named_parameters()}
    assert {name: weight.data_ptr() for name, weight in own.items()} == {
        name: weight.data_ptr() for name, weight in sam.image_encoder.named_parameters()
    }
    assert all(hasattr(block.attn, "qkv") for block in sam.image_encoder.blocks)
