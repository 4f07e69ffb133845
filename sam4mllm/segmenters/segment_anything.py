"""SegmentAnything: a segmenter of Meta's segment_anything package, for `.pth` checkpoints such as sam_vit_b.

SAM's prompt encoder adds 0.5 to coordinates of its input square, because it was trained on integer pixel indices. Our
coordinates are continuous (the center of pixel 0 is 0.5), so 0.5 is subtracted after scaling.
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
from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter, weights_fingerprint
from sam4mllm.segmenters.encoder_attention import with_partial_attention
from sam4mllm.segmenters.frame import InputFrame, Upsampling, UpsamplingCache
from sam4mllm.segmenters.shared_decoder import SharedDecoder
from sam4mllm.utils.atomic_io import atomic_path


class SegmentAnything(Segmenter):
    """A segmenter around a segment_anything Sam.

    The image encoder and the mask decoder compute in `dtype`, the prompt encoder in float32. The model is moved, cast
    and frozen in place and must not be changed afterwards.

    Args:
        sam: A `segment_anything.modeling.Sam`.
        device: The device that it computes on.
        dtype: The dtype that it computes in: torch.float32, torch.bfloat16 or torch.float16.
    """

    def __init__(self, sam: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._sam = sam.to(self.device).eval().requires_grad_(False)
        self._sam.image_encoder.to(dtype)
        self._sam.mask_decoder.to(dtype)
        encoder = self._sam.image_encoder
        self._encoder = with_partial_attention(encoder) if self.device.type == "cpu" else encoder
        self._frame = InputFrame(int(sam.image_encoder.img_size))
        with torch.inference_mode():
            self._decoder = SharedDecoder(self._sam)
        self._low_res_side = 4 * int(sam.prompt_encoder.image_embedding_size[0])
        self._upsamplings = UpsamplingCache(self._frame, self._low_res_side, self.device)

    @property
    def sam(self) -> Any:
        """The `segment_anything.modeling.Sam`; it must not be changed."""
        return self._sam

    @property
    def frame(self) -> InputFrame:
        """The frame in which images are resized."""
        return self._frame

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the hyperparameters that shapes do not determine, and the dtype."""
        sam = self._sam
        heads = [block.attn.num_heads for block in sam.image_encoder.blocks]
        windows = [block.window_size for block in sam.image_encoder.blocks]
        decoder_heads = sam.mask_decoder.transformer.layers[0].self_attn.num_heads
        statistics = [sam.pixel_mean.flatten().tolist(), sam.pixel_std.flatten().tolist()]
        facts = (str(self.dtype), self._frame.side, heads, windows, decoder_heads, statistics)
        return weights_fingerprint(facts, sam.state_dict())

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Compute the image encoder's input (P, 3, side, side) float32; raises the errors of `embed`."""
        return self._frame.pixels(images, self._sam.pixel_mean, self._sam.pixel_std)

    @torch.inference_mode()
    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Embed images (H, W, 3) uint8 RGB in one device batch; see `Segmenter.embed`.

        Raises:
            ValueError: There are no images, or one is not (H, W, 3) uint8.
        """
        features = self._encoder(self.pixels(images).to(self.dtype))
        return Embeddings((features,), tuple((image.shape[1], image.shape[0]) for image in images))

    @torch.inference_mode()
    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        """Decode N prompts to the mask with the highest predicted IoU of SAM's three; see `Segmenter.decode_points`."""
        scale = self._frame.prompt_scale_xy(embeddings.sizes_wh, index)
        points = (points_xy * scale[:, None] - 0.5, labels) if points_xy.shape[1] else None
        boxes = None if boxes_xyxy is None else boxes_xyxy * scale.repeat(1, 2) - 0.5
        sparse, _ = self._sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        return self._decode_sparse(embeddings, index, sparse)

    @property
    def not_a_point(self) -> torch.Tensor:
        weight: torch.Tensor = self._sam.prompt_encoder.not_a_point_embed.weight
        return weight[0].float()

    @torch.inference_mode()
    def decode_embedded(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> DecodedMasks:
        """Decode N embedded prompts to the best mask of each, as `decode_points`; see `Segmenter.decode_embedded`."""
        sparse = tokens.to(self.device)
        if boxes_xyxy is not None:
            sparse = torch.cat([self.box_tokens(embeddings, index, boxes_xyxy), sparse], dim=1)
        return self._decode_sparse(embeddings, index, sparse)

    def box_tokens(self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """Return the sparse prompt tokens (N, 2, C) of boxes (N, 4) in pixels of their images `index` (N,)."""
        boxes = boxes_xyxy * self._frame.prompt_scale_xy(embeddings.sizes_wh, index).repeat(1, 2) - 0.5
        tokens: torch.Tensor = self._sam.prompt_encoder(points=None, boxes=boxes, masks=None)[0]
        return tokens

    def _decode_sparse(self, embeddings: Embeddings, index: torch.Tensor, sparse: torch.Tensor) -> DecodedMasks:
        """Decode prompts, given by their sparse prompt tokens (N, K, C)."""
        # Features of unused images are left out: with one image, the decoder shares its keys and values.
        images, local = torch.unique(index, return_inverse=True)
        # The logits of padding are not computed. They are 0 for each image alone, whatever images share the batch.
        extents = [self._frame.extent_hw(size_wh, self._low_res_side) for size_wh in embeddings.sizes_wh]
        extent_hw = (max(rows for rows, _ in extents), max(columns for _, columns in extents))
        keys = self._decoder.read_images(embeddings.features[0][images])
        logits, iou = self._decoder.decode(keys, local, sparse, extent_hw)
        if len(set(extents)) > 1:
            rows, columns = torch.tensor(extents, device=self.device)[index, :, None].unbind(dim=1)
            cells = torch.arange(self._low_res_side, device=self.device)
            logits *= (cells < rows)[:, :, None] & (cells < columns)[:, None]
        return DecodedMasks(logits, iou, index, embeddings.sizes_wh)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the interpolation to an image of `size_wh`; see `Segmenter.upsampling`."""
        return self._upsamplings.get(size_wh)


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SegmentAnything:
    """Load a segment_anything checkpoint.

    Args:
        path: A `.pth` file with a state dict, as Meta's are, or with `{"model": state dict, "architecture": {...}}`, in
            which "architecture" has some fields of `SamArchitecture`.
        device: The device that the segmenter computes on.
        dtype: The dtype that it computes in; weights of other dtypes are cast to it.

    Raises:
        ModelError: The file does not exist, is not a checkpoint or not of a Sam, or weights are missing, unexpected or
            of other shapes.
    """
    weights, overrides = _read(path)
    try:
        architecture = SamArchitecture.infer(weights, overrides)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    try:
        sam = architecture.build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{path}: segment_anything cannot build this architecture: {error_summary(error)}") from error
    expected = sam.state_dict()
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    mismatched = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)):
        if names:
            raise ModelError(
                f"{path}: {problem} weights {names[:3]} ({len(names)} in all); is the SAM checkpoint complete?"
            )
    sam.load_state_dict(weights)
    return SegmentAnything(sam, device, dtype)


def save_checkpoint(path: Path, sam: Any, architecture: SamArchitecture) -> None:
    """Write the weights and the architecture of a Sam to a checkpoint for `load_checkpoint`."""
    # Given a path, torch would write the temporary file's name into the checkpoint.
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        torch.save({"model": sam.state_dict(), "architecture": architecture.to_dict()}, file)


def _read(path: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """Read the weights of a checkpoint and its "architecture" entry, empty if there is none."""
    if not path.is_file():
        raise ModelError(f"no segmenter checkpoint at {path}")
    try:
        # torch warns about unusual pickles before it refuses them.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file may raise nearly any error. For a refused pickle, torch's message explains how to load it unsafely.
    except Exception as error:
        reason = "it holds other objects than weights"
        if not isinstance(error, pickle.UnpicklingError):
            reason = error_summary(error)
        raise ModelError(f"{path} is not a checkpoint of weights: {reason}; give a segment_anything .pth") from None
    overrides: Mapping[str, Any] = {}
    if isinstance(content, Mapping) and "model" in content:
        overrides = content.get("architecture", {})
        content = content["model"]
    if not isinstance(overrides, Mapping):
        raise ModelError(f'{path}: "architecture" must be a mapping; found {type(overrides).__name__}')
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict; a segmenter checkpoint maps names to tensors")
    return content, overrides


def error_summary(error: Exception) -> str:
    """Return the class of an error and the first sentence of its message."""
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
