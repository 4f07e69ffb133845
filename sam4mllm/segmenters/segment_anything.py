"""Facebook's segment_anything as a Segmenter: `.pth` checkpoints such as sam_vit_b, in the package's own classes.

SAM adds half a pixel of its input square to every coordinate, because it was taught whole pixel numbers. Ours are
continuous (a pixel's centre ends in .5 already), so the half is taken off again after scaling.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.errors import ModelError
from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.base import Decoded, Embeddings, Segmenter
from sam4mllm.segmenters.fingerprint import fingerprint_of
from sam4mllm.segmenters.frame import InputFrame, Upsampling, Upsamplings
from sam4mllm.segmenters.shared_decoder import SharedDecoder


class SegmentAnything(Segmenter):
    """A segment_anything Sam.

    The image encoder and the mask decoder compute in `dtype`, prompts in float32. The model is changed in place (moved,
    cast, frozen) and must not change afterwards.

    Args:
        sam: A `segment_anything.modeling.Sam`.
        device: Where it computes.
        dtype: torch.float32, torch.bfloat16 or torch.float16.
    """

    def __init__(self, sam: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._sam = sam.to(self.device).eval().requires_grad_(False)
        self._sam.image_encoder.to(dtype)
        self._sam.mask_decoder.to(dtype)
        self._frame = InputFrame(int(sam.image_encoder.img_size))
        with torch.inference_mode():
            self._decoder = SharedDecoder(self._sam)
        self._upsamplings = Upsamplings(self._frame, 4 * int(sam.prompt_encoder.image_embedding_size[0]), self.device)

    @property
    def sam(self) -> Any:
        """The model as segment_anything's own classes see it, to be read and not changed."""
        return self._sam

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and values of the weights, what shapes do not tell, and the number type."""
        sam = self._sam
        heads = [block.attn.num_heads for block in sam.image_encoder.blocks]
        windows = [block.window_size for block in sam.image_encoder.blocks]
        decoder_heads = sam.mask_decoder.transformer.layers[0].self_attn.num_heads
        statistics = [sam.pixel_mean.flatten().tolist(), sam.pixel_std.flatten().tolist()]
        told = (str(self.dtype), self._frame.side, heads, windows, decoder_heads, statistics)
        return fingerprint_of(told, sam.state_dict())

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """What the image encoder sees of the images: (P, 3, side, side) float32. Raises as `embed` does."""
        return self._frame.pixels(images, self._sam.pixel_mean, self._sam.pixel_std)

    @torch.inference_mode()
    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """See `Segmenter.embed`.

        Raises:
            ValueError: an image that is not (H, W, 3) uint8.
        """
        features = self._sam.image_encoder(self.pixels(images).to(self.dtype))
        return Embeddings((features,), tuple((image.shape[1], image.shape[0]) for image in images))

    @torch.inference_mode()
    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> Decoded:
        """See `Segmenter.decode_points`. Of SAM's three masks, the one with the highest predicted IoU."""
        # Only the images asked for: with one image, the decoder shares all that it can.
        images, local = torch.unique(index, return_inverse=True)
        scale = self._frame.scale_xy(embeddings.sizes_wh).to(self.device)[index]
        points = (points_xy * scale[:, None] - 0.5, labels) if points_xy.shape[1] else None
        boxes = None if boxes_xyxy is None else boxes_xyxy * scale.repeat(1, 2) - 0.5
        sparse, _ = self._sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        logits, iou = self._decoder.decode(self._decoder.read_images(embeddings.features[0][images]), local, sparse)
        return Decoded(logits, iou, index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """See `Segmenter.upsampling`."""
        return self._upsamplings.of(size_wh)


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SegmentAnything:
    """Loads a segment_anything checkpoint.

    Args:
        path: A `.pth` that holds a state dict (as Facebook's do) or `{"model": state dict, "architecture": {...}}`,
            the second a part of `SamArchitecture`.
        device: Where it computes.
        dtype: What it computes in. Weights are brought to it from whatever type they are stored in.

    Raises:
        ModelError: no such file, not a checkpoint, not a SAM, missing or misshapen weights.
    """
    weights, beside = _read(path)
    try:
        architecture = SamArchitecture.infer(weights, beside)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    try:
        sam = architecture.build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{path}: segment_anything has no Sam of this architecture: {first_line(error)}") from error
    expected = sam.state_dict()
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected))
    misshapen = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    for what, names in (("no", missing), ("unknown", unknown), ("misshapen", misshapen)):
        if names:
            raise ModelError(f"{path}: {what} weights {names[:3]} ({len(names)} in all); is it a whole SAM checkpoint?")
    sam.load_state_dict(weights)
    return SegmentAnything(sam, device, dtype)


def save_checkpoint(path: Path, sam: Any, architecture: SamArchitecture) -> None:
    """Writes a Sam in the form that `load_checkpoint` reads, with the architecture beside the weights."""
    torch.save({"model": sam.state_dict(), "architecture": architecture.to_dict()}, path)


def _read(path: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """The weights of a checkpoint and what stands beside them."""
    if not path.is_file():
        raise ModelError(f"no segmenter checkpoint at {path}")
    try:
        # torch warns of a pickle that it does not know well, on its way to refusing it.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file may raise nearly anything; what torch says to a refused one is how to load it unsafely.
    except Exception as error:
        reason = "it holds more than weights, or no weights at all"
        if not isinstance(error, pickle.UnpicklingError):
            reason = first_line(error)
        raise ModelError(f"{path} is no checkpoint of plain weights: {reason}; give a segment_anything .pth") from None
    beside: Mapping[str, Any] = {}
    if isinstance(content, Mapping) and "model" in content:
        beside = content.get("architecture", {})
        content = content["model"]
    if not isinstance(beside, Mapping):
        raise ModelError(f"{path}: the architecture beside the weights is a mapping; found {type(beside).__name__}")
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict; a segmenter checkpoint maps names to tensors")
    return content, beside


def first_line(error: Exception) -> str:
    """The kind of an error and the beginning of what it says, up to its first full stop."""
    said = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
