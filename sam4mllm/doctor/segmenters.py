"""Does every kind of segmenter run here, and does it answer as its own library does? Shown on small random models.

Each check returns None, or why it failed. What the masks are worth is not checked: the weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sam4mllm.doctor.library_answers import library_answer
from sam4mllm.doctor.renamed_sam import as_sam_model
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.base import DecodedMasks
from sam4mllm.segmenters.families import FAMILIES, family_of
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything, error_summary
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing.tiny_segmenters import (
    SEGMENT_ANYTHING,
    TINY_SAM,
    save_tiny_segmenter,
    tiny_sam,
    tiny_segmenter_model,
)

SIZES_WH = ((140, 91), (64, 150), (37, 33))
REQUESTS = (
    (2, SamPrompt(Box(3, 4, 20, 25))),
    (0, SamPrompt(Box(10, 20, 90, 70), (Point(30.5, 40.5, 1), Point(100.5, 80.5, 0)))),
    (1, SamPrompt(None, (Point(30.5, 70.5, 1),))),
    (0, SamPrompt(Box(60, 5, 130, 60))),
    (2, SamPrompt(Box(1, 8, 30, 31), (Point(10.5, 20.5, 1), Point(2.5, 3.5, 0)))),
    (0, SamPrompt(None, (Point(30.5, 40.5, 1), Point(100.5, 80.5, 0)))),
)
"""Boxes, points and both, of images of several shapes, in no order."""


@dataclass(frozen=True)
class Subject:
    """A segmenter to be checked: its name, a checkpoint of a small random one, and where it computes."""

    name: str
    checkpoint: Path
    device: str = "cpu"

    @cached_property
    def segmenter(self) -> SegmentAnything | TransformersSam:
        """The segmenter in float32, loaded once."""
        return self.load()

    @cached_property
    def on_cpu(self) -> SegmentAnything | TransformersSam:
        """The same on the CPU, to be compared with its own library, which computes there."""
        return self.segmenter if self.device == "cpu" else Subject(self.name, self.checkpoint).segmenter

    def load(self, dtype: str = "float32") -> SegmentAnything | TransformersSam:
        """The segmenter of the checkpoint.

        Raises:
            ModelError: see `load_segmenter`.
        """
        segmenter = load_segmenter(self.checkpoint, self.device, dtype)
        if not isinstance(segmenter, SegmentAnything | TransformersSam):
            raise ModelError(f"{self.checkpoint} gave a {type(segmenter).__name__}")
        return segmenter


Check = Callable[[Subject], str | None]


def check_segmenters(device: str = "cpu") -> dict[str, dict[str, bool | str]]:
    """The outcome of each check by the segmenter's name and the check's: True, or the reason why it failed."""
    outcomes: dict[str, dict[str, bool | str]] = {}
    # A GPU's convolutions have ten bits in float32 unless told otherwise, and float32 is compared to 1e-4 here.
    with TemporaryDirectory() as folder, torch.backends.cudnn.flags(allow_tf32=False):
        for name in (SEGMENT_ANYTHING, *(family.name for family in FAMILIES)):
            try:
                subject = Subject(name, save_tiny_segmenter(name, Path(folder) / name), device)
            # A library that lacks the model may fail in any way; the table is there to say so.
            except Exception as error:
                outcomes[name] = {"builds": error_summary(error)}
                continue
            outcomes[name] = {check: _outcome(run, subject) for check, run in checks_of(name).items()}
    return outcomes


def checks_of(name: str) -> dict[str, Check]:
    """The checks of the segmenter `name`, by their names."""
    return CHECKS | ({"agrees_with_sam_model": agrees_with_sam_model} if name == SEGMENT_ANYTHING else {})


def _outcome(check: Check, subject: Subject) -> bool | str:
    try:
        reason = check(subject)
    # As above: an error is what the table is to show.
    except Exception as error:
        return error_summary(error)
    return True if reason is None else reason


def loads(subject: Subject) -> str | None:
    """Saved and loaded, it is the model that it was."""
    built: SegmentAnything | TransformersSam
    if subject.name == SEGMENT_ANYTHING:
        built = SegmentAnything(tiny_sam())
    else:
        built = TransformersSam(tiny_segmenter_model(subject.name), family_of(subject.name))
    return None if subject.segmenter.fingerprint == built.fingerprint else "the loaded model has another fingerprint"


def refuses_missing_weights(subject: Subject) -> str | None:
    """A checkpoint that lacks a weight is an error, not a model with a random weight."""
    name = "mask_decoder.iou_token.weight"
    with TemporaryDirectory() as folder:
        checkpoint = _without(subject.checkpoint, name, Path(folder))
        try:
            load_segmenter(checkpoint)
        except ModelError as error:
            return None if f"no weights ['{name}']" in str(error) else f"it is refused for another reason: {error}"
    return f"it loads without {name}"


def batch_is_one_by_one(subject: Subject) -> str | None:
    """Several images and prompts at once give what each gives alone: logits and predicted IoU to 1e-4, in order."""
    segmenter, images = subject.segmenter, example_images()
    decoded = segmenter.decode(segmenter.embed(images), REQUESTS)
    for place, (index, prompt) in enumerate(REQUESTS):
        alone = segmenter.decode(segmenter.embed([images[index]]), [(0, prompt)])
        difference = max(
            float((decoded.low_res_logits[place] - alone.low_res_logits[0]).abs().max()),
            float((decoded.iou[place] - alone.iou[0]).abs()),
        )
        if not difference <= 1e-4:
            return f"prompt {place} is off by {difference:.1e} in the batch"
    return None


def masks_have_image_size(subject: Subject) -> str | None:
    """Masks are bool, as large as their images, and on the segmenter's device."""
    segmenter = subject.segmenter
    masks = segmenter.masks(segmenter.decode(segmenter.embed(example_images()), REQUESTS))
    for (image, _), mask in zip(REQUESTS, masks, strict=True):
        if mask.dtype != torch.bool or tuple(mask.shape) != SIZES_WH[image][::-1]:
            return f"an image of {SIZES_WH[image]} has a mask {tuple(mask.shape)} {mask.dtype}"
        if mask.device.type != segmenter.device.type:
            return f"a mask is on {mask.device}, the segmenter on {segmenter.device}"
    return None


def pixels_of_library(subject: Subject) -> str | None:
    """The image encoder sees what the library's processor would show it, to one level of 255."""
    segmenter = subject.on_cpu
    for image in example_images():
        ours, theirs = segmenter.pixels([image]), library_answer(segmenter, image, REQUESTS[0][1]).pixels
        # The smallest standard deviation of a channel is 0.224; resizing rounds to a level, in either library.
        if ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= 1.01 / 255 / 0.224:
            return f"an image of {image.shape[1::-1]} is another one to the image encoder"
    return None


def masks_of_library(subject: Subject) -> str | None:
    """Full-size logits and predicted IoU are those of the library's processor, model and `post_process_masks`.

    The images have one colour, which every way of resizing leaves alone, so that half a pixel in a prompt would show.
    """
    segmenter = subject.on_cpu
    for index, prompt in REQUESTS:
        width, height = SIZES_WH[index]
        image = np.full((height, width, 3), (200, 120, 40), np.uint8)
        decoded = segmenter.decode(segmenter.embed([image]), [(0, prompt)])
        logits = segmenter.upsampling((width, height)).logits(decoded.low_res_logits)[0]
        theirs = library_answer(segmenter, image, prompt)
        difference = float((logits - theirs.logits).abs().max() / theirs.logits.std())
        if not (difference <= 5e-4 and abs(float(decoded.iou[0]) - theirs.iou) <= 1e-4):
            return f"{prompt} in a index of {(width, height)}: logits are off by {difference:.1e} of their spread"
    return None


def bfloat16(subject: Subject) -> str | None:
    """It runs in bfloat16 and stays near to float32."""
    return _near_float32(subject, "bfloat16")


def float16(subject: Subject) -> str | None:
    """It runs in float16 and stays near to float32."""
    return _near_float32(subject, "float16")


def agrees_with_sam_model(subject: Subject) -> str | None:
    """The same weights under transformers' names give the same masks: IoU above 0.99, predicted IoU to 1e-4."""
    ours = subject.segmenter
    theirs = TransformersSam(as_sam_model(tiny_sam(), TINY_SAM), family_of("sam"), subject.device)
    (masks, decoded), (other_masks, other_decoded) = (_answers(segmenter) for segmenter in (ours, theirs))
    if not any(mask.any() for mask in masks):
        return "all masks are empty, so nothing is compared"
    for mask, other in zip(masks, other_masks, strict=True):
        union = int((mask | other).sum())
        if union and int((mask & other).sum()) / union <= 0.99:
            return "masks differ"
    difference = float((decoded.iou - other_decoded.iou).abs().max())
    return None if difference <= 1e-4 else f"the predicted IoU differs by {difference:.1e}"


CHECKS: dict[str, Check] = {
    "loads": loads,
    "refuses_missing_weights": refuses_missing_weights,
    "batch_is_one_by_one": batch_is_one_by_one,
    "masks_have_image_size": masks_have_image_size,
    "pixels_of_library": pixels_of_library,
    "masks_of_library": masks_of_library,
    "bfloat16": bfloat16,
    "float16": float16,
}


def example_images() -> list[npt.NDArray[np.uint8]]:
    """Soft patches of colour, one image (H, W, 3) for each of `SIZES_WH`."""
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES_WH]
    return [
        np.array(Image.fromarray(patch).resize(size_wh, Image.Resampling.BICUBIC))
        for patch, size_wh in zip(patches, SIZES_WH, strict=True)
    ]


def _answers(segmenter: SegmentAnything | TransformersSam) -> tuple[list[torch.Tensor], DecodedMasks]:
    decoded = segmenter.decode(segmenter.embed(example_images()), REQUESTS)
    return segmenter.masks(decoded), decoded


def _near_float32(subject: Subject, dtype: str) -> str | None:
    """Nine of ten pixels are the same, and the predicted IoU is to 0.1."""
    (exact, decoded), (half, half_decoded) = (_answers(one) for one in (subject.segmenter, subject.load(dtype)))
    same = torch.stack([(one == other).float().mean() for one, other in zip(exact, half, strict=True)]).mean()
    difference = float((decoded.iou - half_decoded.iou).abs().max())
    if same >= 0.9 and difference <= 0.1:
        return None
    return f"{float(same):.0%} of the pixels are the same, the predicted IoU differs by up to {difference:.2f}"


def _without(checkpoint: Path, name: str, folder: Path) -> Path:
    """A copy of `checkpoint`, made in `folder`, that lacks the weight `name`."""
    if checkpoint.is_file():
        content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        del content["model"][name]
        torch.save(content, folder / checkpoint.name)
        return folder / checkpoint.name
    from safetensors.torch import load_file, save_file

    # SAM3's names begin with the part of the whole model that they belong to.
    weights = load_file(checkpoint / "model.safetensors")
    rest = {key: weight for key, weight in weights.items() if not key.endswith(name)}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return folder
