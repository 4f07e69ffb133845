from dataclasses import replace

import pytest
import torch

from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.shared_decoder import SharedDecoder
from sam4mllm.testing import TINY_SAM, tiny_sam


@pytest.mark.parametrize(
    "architecture",
    [
        TINY_SAM,
        replace(TINY_SAM, decoder_depth=3, decoder_heads=4, attention_downsample_rate=1),
        replace(TINY_SAM, decoder_depth=1, num_multimask_outputs=2),
        # Wide enough that the maps of the image tokens are moved to the prompt tokens.
        replace(TINY_SAM, decoder_depth=3, prompt_embed_dim=64),
    ],
)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("extent_hw", [None, (19, 30)])
@torch.inference_mode()
def test_masks_and_iou_equal_those_of_segment_anything(
    architecture: SamArchitecture, images: int, extent_hw: tuple[int, int] | None
) -> None:
    sam = tiny_sam(architecture=architecture)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, architecture.prompt_embed_dim, 8, 8, generator=generator)
    index = torch.arange(7) % images
    points = torch.rand(7, 3, 2, generator=generator) * 64
    labels = torch.tensor([[1, 1, 0]]).expand(7, 3)
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)

    decoder = SharedDecoder(sam)
    logits, iou = decoder.decode(decoder.read_images(features), index, sparse, extent_hw)

    height, width = extent_hw or (32, 32)
    assert logits.shape == (7, 32, 32) and not logits[:, height:].any() and not logits[:, :, width:].any()
    for prompt in range(7):
        masks, guesses = sam.mask_decoder(
            image_embeddings=features[index[prompt]][None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse[prompt][None],
            dense_prompt_embeddings=dense[prompt][None],
            multimask_output=True,
        )
        best = guesses[0].argmax()
        torch.testing.assert_close(iou[prompt], guesses[0, best], atol=1e-4, rtol=1e-4)
        expected = masks[0, best, :height, :width]
        # Both differ from the masks in float64 by as much as this: the logits of the wide model are up to 75.
        atol = 1e-4 if architecture.prompt_embed_dim == 16 else 2e-3
        torch.testing.assert_close(logits[prompt, :height, :width], expected, atol=atol, rtol=1e-4)


# One prompt and one row of tokens at a time, three prompts and one row, and all.
@pytest.mark.parametrize("cached_values", [1, 3 * 64 * 16, 2**30])
@torch.inference_mode()
def test_masks_do_not_depend_on_what_is_computed_at_once(cached_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = tiny_sam()
    decoder = SharedDecoder(sam)
    generator = torch.Generator().manual_seed(1)
    images = decoder.read_images(torch.randn(2, 16, 8, 8, generator=generator))
    sparse = torch.randn(7, 3, 16, generator=generator)
    index = torch.arange(7) % 2
    expected = decoder.decode(images, index, sparse, (27, 32))[0]
    monkeypatch.setattr("sam4mllm.segmenters.shared_decoder._CACHED_VALUES", cached_values)
    torch.testing.assert_close(decoder.decode(images, index, sparse, (27, 32))[0], expected)


def test_bfloat16_is_close_to_float32() -> None:
    exact, half = tiny_sam(), tiny_sam()
    half.mask_decoder.to(torch.bfloat16)
    features = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    index = torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode():
        sparse, _ = exact.prompt_encoder(
            points=None, boxes=torch.tensor([[1.0, 2, 30, 40], [9, 9, 50, 20]]), masks=None
        )
        expected, got = (
            decoder.decode(decoder.read_images(features), index, sparse)
            for decoder in (SharedDecoder(exact), SharedDecoder(half))
        )
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[1], expected[1], atol=0.2, rtol=0.1)


def test_an_upscaling_with_another_kernel_raises_an_error() -> None:
    sam = tiny_sam()
    sam.mask_decoder.output_upscaling[0] = torch.nn.ConvTranspose2d(16, 4, kernel_size=3, stride=2)
    with pytest.raises(ValueError, match="kernel 2 and stride 2"):
        SharedDecoder(sam)
