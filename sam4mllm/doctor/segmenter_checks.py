"""Checks of a segmenter: loading, batches, masks, agreement with its own library, 16-bit dtypes.

The quality of masks is not checked, because the weights are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sam4mllm.doctor.reference_segmenters import library_answer, to_sam_model
from sam4mllm.doctor.result import expect
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.base import DecodedMasks, Segmenter
from sam4mllm.segmenters.families import family_of
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing.tiny_segmenters import SEGMENT_ANYTHING, TINY_SAM, tiny_sam, tiny_segmenter_model

SIZES_WH = ((140, 91), (64, 150), (37, 33))
REQUESTS = (
    (2, SamPrompt(Box(3, 4, 20, 25))),
    (0, SamPrompt(Box(10, 20, 90, 70), (Point(30.5, 40.5, 1), Point(100.5, 80.5, 0)))),
    (1, SamPrompt(None, (Point(30.5, 70.5, 1),))),
    (0, SamPrompt(Box(60, 5, 130, 60))),
    (2, SamPrompt(Box(1, 8, 30, 31), (Point(10.5, 20.5, 1), Point(2.5, 3.5, 0)))),
    (0, SamPrompt(None, (Point(30.5, 40.5, 1), Point(100.5, 80.5, 0)))),
)
"""Index of the image and prompt: boxes, points and both, of images of several shapes, in mixed order."""


@dataclass(frozen=True)
class SegmenterUnderTest:
    """A segmenter: its family's name or "segment_anything", a checkpoint of a tiny random one, and its device."""

    name: str
    checkpoint: Path
    device: str = "cpu"

    @cached_property
    def segmenter(self) -> SegmentAnything | TransformersSam:
        """The segmenter in float32, loaded once."""
        return self.load()

    @cached_property
    def on_cpu(self) -> SegmentAnything | TransformersSam:
        """The segmenter on the CPU, where its own library computes the reference."""
        return self.segmenter if self.device == "cpu" else SegmenterUnderTest(self.name, self.checkpoint).segmenter

    def load(self, dtype: str = "float32") -> SegmentAnything | TransformersSam:
        """Load the checkpoint in `dtype`.

        Raises:
            ModelError: As `load_segmenter`.
        """
        segmenter = load_segmenter(self.checkpoint, self.device, dtype)
        if not isinstance(segmenter, SegmentAnything | TransformersSam):
            raise ModelError(f"{self.checkpoint} was loaded as a {type(segmenter).__name__}")
        return segmenter


def loads(under_test: SegmenterUnderTest) -> None:
    """Check that the loaded segmenter has the fingerprint of the saved one."""
    saved: SegmentAnything | TransformersSam
    if under_test.name == SEGMENT_ANYTHING:
        saved = SegmentAnything(tiny_sam())
    else:
        saved = TransformersSam(tiny_segmenter_model(under_test.name), family_of(under_test.name))
    expect(under_test.segmenter.fingerprint == saved.fingerprint, "the loaded model has another fingerprint")


def refuses_missing_weights(under_test: SegmenterUnderTest) -> None:
    """Check that a checkpoint without one of its weights is refused, instead of a random weight in its place."""
    name = "mask_decoder.iou_token.weight"
    with TemporaryDirectory() as folder:
        checkpoint = _copy_without(under_test.checkpoint, name, Path(folder))
        try:
            load_segmenter(checkpoint)
        except ModelError as error:
            expect(f"missing weights ['{name}']" in str(error), f"it is refused for another reason: {error}")
            return
    expect(False, f"it loads without {name}")


def batch_equals_singles(under_test: SegmenterUnderTest) -> None:
    """Check that a batch equals single prompts; see `expect_batch_equals_singles`."""
    expect_batch_equals_singles(under_test.segmenter)


def masks_have_image_size(under_test: SegmenterUnderTest) -> None:
    """Check the dtype, size and device of masks; see `expect_masks_of_image_size`."""
    expect_masks_of_image_size(under_test.segmenter)


def pixels_match_library(under_test: SegmenterUnderTest) -> None:
    """Check that the image encoder's input is that of the library's processor, to one level of 255."""
    segmenter = under_test.on_cpu
    for image in example_images():
        ours, theirs = segmenter.pixels([image]), library_answer(segmenter, image, REQUESTS[0][1]).pixels
        # The smallest standard deviation of a channel is 0.224; both libraries round to a level when resizing.
        equal = ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1.01 / 255 / 0.224
        expect(equal, f"the pixels of an image of {image.shape[1::-1]} differ from the library's")


def masks_match_library(under_test: SegmenterUnderTest) -> None:
    """Check that full-size logits and predicted IoU are those of the library's processor, model and post-processing.

    The images have a single color, which resizing does not change, so that the check is exact enough to detect an
    offset of half a pixel in a prompt.
    """
    segmenter = under_test.on_cpu
    for index, prompt in REQUESTS:
        width, height = SIZES_WH[index]
        image = np.full((height, width, 3), (200, 120, 40), np.uint8)
        decoded = segmenter.decode(segmenter.embed([image]), [(0, prompt)])
        logits = segmenter.upsampling((width, height)).logits(decoded.low_res_logits)[0]
        theirs = library_answer(segmenter, image, prompt)
        difference = float((logits - theirs.logits).abs().max() / theirs.logits.std())
        equal = difference <= 5e-4 and abs(float(decoded.iou[0]) - theirs.iou) <= 1e-4
        expect(
            equal, f"{prompt} in an image of {(width, height)}: logits differ by {difference:.1e} standard deviations"
        )


def bfloat16(under_test: SegmenterUnderTest) -> None:
    """Check that masks and predicted IoU in bfloat16 are close to those in float32."""
    _expect_close_to_float32(under_test, "bfloat16")


def float16(under_test: SegmenterUnderTest) -> None:
    """Check that masks and predicted IoU in float16 are close to those in float32."""
    _expect_close_to_float32(under_test, "float16")


def matches_sam_model(under_test: SegmenterUnderTest) -> None:
    """Check that the weights in transformers' SamModel give the same masks: IoU above 0.99, predicted IoU to 1e-4."""
    theirs = TransformersSam(to_sam_model(tiny_sam(), TINY_SAM), family_of("sam"), under_test.device)
    (masks, decoded), (other_masks, other_decoded) = map(_segment_examples, (under_test.segmenter, theirs))
    expect(any(bool(mask.any()) for mask in masks), "all masks are empty, so nothing is compared")
    for mask, other in zip(masks, other_masks, strict=True):
        union = int((mask | other).sum())
        expect(not union or int((mask & other).sum()) / union > 0.99, "masks differ")
    difference = float((decoded.iou - other_decoded.iou).abs().max())
    expect(difference <= 1e-4, f"the predicted IoU differs by {difference:.1e}")


def expect_batch_equals_singles(segmenter: Segmenter) -> None:
    """Check that prompts of several images in one batch give the same logits and predicted IoU, to 1e-4, as one by one.

    Raises:
        CheckError: The results differ.
    """
    images = example_images()
    batch = segmenter.decode(segmenter.embed(images), REQUESTS)
    for row, (index, prompt) in enumerate(REQUESTS):
        single = segmenter.decode(segmenter.embed([images[index]]), [(0, prompt)])
        difference = max(
            float((batch.low_res_logits[row] - single.low_res_logits[0]).abs().max()),
            float((batch.iou[row] - single.iou[0]).abs()),
        )
        expect(difference <= 1e-4, f"prompt {row} differs by {difference:.1e} in the batch")


def expect_masks_of_image_size(segmenter: Segmenter) -> None:
    """Check that masks are bool, have the size of their images, and are on the segmenter's device.

    Raises:
        CheckError: A mask differs.
    """
    masks, _ = _segment_examples(segmenter)
    for (index, _), mask in zip(REQUESTS, masks, strict=True):
        equal = mask.dtype == torch.bool and tuple(mask.shape) == SIZES_WH[index][::-1]
        expect(equal, f"the mask of an image of {SIZES_WH[index]} is {mask.dtype} {tuple(mask.shape)}")
        same = mask.device.type == segmenter.device.type
        expect(same, f"a mask is on {mask.device}, the segmenter on {segmenter.device}")


def example_images() -> list[npt.NDArray[np.uint8]]:
    """Return images (H, W, 3) of smooth random colors, one for each of `SIZES_WH`."""
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES_WH]
    return [
        np.array(Image.fromarray(patch).resize(size_wh, Image.Resampling.BICUBIC))
        for patch, size_wh in zip(patches, SIZES_WH, strict=True)
    ]


def _segment_examples(segmenter: Segmenter) -> tuple[list[torch.Tensor], DecodedMasks]:
    decoded = segmenter.decode(segmenter.embed(example_images()), REQUESTS)
    return segmenter.masks(decoded), decoded


def _expect_close_to_float32(under_test: SegmenterUnderTest, dtype: str) -> None:
    """Check that nine of ten pixels equal those in float32, and that the predicted IoU agrees to 0.1."""
    exact, exact_decoded = _segment_examples(under_test.segmenter)
    half, half_decoded = _segment_examples(under_test.load(dtype))
    equal = torch.stack([(one == other).float().mean() for one, other in zip(exact, half, strict=True)]).mean()
    difference = float((exact_decoded.iou - half_decoded.iou).abs().max())
    message = f"{float(equal):.0%} of the pixels are equal, the predicted IoU differs by up to {difference:.2f}"
    expect(float(equal) >= 0.9 and difference <= 0.1, message)


def _copy_without(checkpoint: Path, name: str, folder: Path) -> Path:
    """Copy `checkpoint` to `folder` without the weight `name`."""
    if checkpoint.is_file():
        content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        del content["model"][name]
        torch.save(content, folder / checkpoint.name)
        return folder / checkpoint.name
    from safetensors.torch import load_file, save_file

    # SAM3's weights have a prefix, because its tracker is a part of a larger model.
    weights = load_file(checkpoint / "model.safetensors")
    rest = {key: weight for key, weight in weights.items() if not key.endswith(name)}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return folder
