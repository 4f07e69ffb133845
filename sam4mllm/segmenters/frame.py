"""The frames that a segmenter works in: the only place of segment/ that scales or resizes.

An image of (W, H) pixels is brought into a square of the segmenter's `side`: its longest side resized to it and the
rest padded (`InputFrame`), or both sides resized to it (`SquareFrame`). Masks come back as logits on a coarse grid over
that square; `Upsampling` leads from there to the original pixels. This module knows no model and no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class InputFrame:
    """The square of `side` pixels into which an image is resized (longest side first) and padded (right and below).

    Source of the rule: segment_anything's `utils/transforms.py`, `ResizeLongestSide`.
    """

    side: int

    def resized_wh(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Width and height, in pixels of the square, of an image of `size_wh`; at least 1 each way."""
        scale = self.side / max(size_wh)
        width, height = (max(int(length * scale + 0.5), 1) for length in size_wh)
        return width, height

    def resize(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The image (H, W, 3) uint8 RGB at its size in the square, not padded."""
        height, width = image.shape[:2]
        resized_wh = self.resized_wh((width, height))
        if resized_wh == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(resized_wh, Image.Resampling.BILINEAR))

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]], mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        """Images (H, W, 3) uint8 RGB as (P, 3, side, side) float32, less `mean` and by `std`, padded with 0.

        `mean` and `std` are (3, 1, 1) on the scale of 0 to 255, on the device that the result is wanted on.

        Raises:
            ValueError: no images, or one that is not (H, W, 3) uint8.
        """
        if not images:
            raise ValueError("no images to embed")
        batch = torch.zeros(len(images), 3, self.side, self.side, device=mean.device)
        for place, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"an image is (H, W, 3) uint8; got {image.shape} {image.dtype}")
            resized = torch.from_numpy(np.array(self.resize(image))).to(mean.device).permute(2, 0, 1)
            height, width = resized.shape[1:]
            # Padding comes after the normalisation, so it is 0 there (Sam.preprocess).
            batch[place, :, :height, :width] = (resized - mean) / std
        return batch

    def scale_xy(self, sizes_wh: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Factors (P, 2) float32 that bring x and y, in pixels of each image, into the square."""
        factors = [
            [resized / length for resized, length in zip(self.resized_wh(size_wh), size_wh, strict=True)]
            for size_wh in sizes_wh
        ]
        return torch.tensor(factors, dtype=torch.float32).reshape(-1, 2)

    def upsampling(self, size_wh: tuple[int, int], coarse_side: int) -> Upsampling:
        """The way back from logits (coarse_side, coarse_side) over the square to an image of `size_wh`, on the CPU.

        The steps are segment_anything's (`Sam.postprocess_masks`): bilinear to the square, the padding cut off,
        bilinear to the image. Each step is linear and treats rows and columns alike, so the two steps are one matrix
        each way.
        """
        (width, height), (resized_width, resized_height) = size_wh, self.resized_wh(size_wh)
        to_square = _linear(coarse_side, self.side)
        return Upsampling(
            rows=(_linear(resized_height, height) @ to_square[:resized_height]).float(),
            columns=(_linear(resized_width, width) @ to_square[:resized_width]).float(),
        )


class SquareFrame(InputFrame):
    """The square of `side` pixels to which an image is resized both ways, whatever its shape.

    Source of the rule: transformers' `Sam2ImageProcessor` and `Sam3ImageProcessor`.
    """

    __slots__ = ()

    def resized_wh(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """The whole square."""
        return self.side, self.side

    def upsampling(self, size_wh: tuple[int, int], coarse_side: int) -> Upsampling:
        """See `InputFrame.upsampling`. Here it is one step, from the coarse grid straight to the image
        (`Sam2ImageProcessor.post_process_masks`).
        """
        width, height = size_wh
        return Upsampling(_linear(coarse_side, height).float(), _linear(coarse_side, width).float())


class Window(NamedTuple):
    """A part of the image, and the part of the coarse grid that its logits come from; ends are exclusive."""

    rows: slice
    columns: slice
    coarse_rows: slice
    coarse_columns: slice


@dataclass(frozen=True, slots=True)
class Upsampling:
    """Bilinear interpolation from a coarse grid to an image, a matrix each way: rows (H, h), columns (W, w), float32.

    No weight is negative and each row sums to 1: a pixel's logit is a mean of a few coarse ones.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def to(self, device: torch.device) -> Upsampling:
        """The same matrices on `device`."""
        return Upsampling(self.rows.to(device), self.columns.to(device))

    def logits(self, coarse: torch.Tensor) -> torch.Tensor:
        """Logits (N, H, W) float32 at the image's size, of coarse logits (N, h, w)."""
        return torch.matmul(self.rows, torch.matmul(coarse.float(), self.columns.T))

    def masks(self, coarse: torch.Tensor) -> torch.Tensor:
        """Masks (N, H, W) bool at the image's size, of coarse logits (N, h, w): where the logit is above 0."""
        return self.logits(coarse) > 0

    def logits_in(self, coarse: torch.Tensor, window: Window) -> torch.Tensor:
        """`logits(coarse)[:, window.rows, window.columns]`, at the cost of the window alone."""
        part = coarse[:, window.coarse_rows, window.coarse_columns].float()
        columns = self.columns[window.columns, window.coarse_columns]
        return torch.matmul(self.rows[window.rows, window.coarse_rows], torch.matmul(part, columns.T))

    def window(self, coarse: torch.Tensor) -> Window | None:
        """The part of the image outside which no mask of coarse logits (N, h, w) has a pixel; None if all are empty.

        A pixel whose coarse logits are all 0 or less has a logit of 0 or less, so what lies outside needs no computing.
        """
        positive = (coarse > 0).any(dim=0)
        ends = torch.stack([_ends(positive.any(dim=1)), _ends(positive.any(dim=0))]).tolist()
        (first_row, last_row), (first_column, last_column) = ends
        if first_row > last_row:
            return None
        rows, coarse_rows = _reach(self.rows, first_row, last_row)
        columns, coarse_columns = _reach(self.columns, first_column, last_column)
        return Window(rows, columns, coarse_rows, coarse_columns)


class Upsamplings:
    """The upsamplings from one frame's coarse grid on one device, kept for the last 64 sizes of images."""

    def __init__(self, frame: InputFrame, coarse_side: int, device: torch.device) -> None:
        self._frame = frame
        self._coarse_side = coarse_side
        self._device = device
        self._kept: dict[tuple[int, int], Upsampling] = {}

    def of(self, size_wh: tuple[int, int]) -> Upsampling:
        """The way back to an image of `size_wh`."""
        found = self._kept.pop(size_wh, None)
        if found is None:
            found = self._frame.upsampling(size_wh, self._coarse_side).to(self._device)
        self._kept[size_wh] = found
        if len(self._kept) > 64:
            del self._kept[next(iter(self._kept))]
        return found


def _linear(source: int, target: int) -> torch.Tensor:
    """The matrix (target, source), float64, of 1-D linear interpolation without aligned corners."""
    identity = torch.eye(source, dtype=torch.float64)[None]
    return functional.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T


def _ends(flags: torch.Tensor) -> torch.Tensor:
    """First and last index (2,) at which `flags` (n,) is True; (n, -1) where none is."""
    index = torch.arange(len(flags), device=flags.device)
    return torch.stack([torch.where(flags, index, len(flags)).min(), torch.where(flags, index, -1).max()])


def _reach(weights: torch.Tensor, first: int, last: int) -> tuple[slice, slice]:
    """Which rows of `weights` (H, h) touch the cells first to last, and which cells those rows touch."""
    touched = (weights[:, first : last + 1] > 0).any(dim=1)
    low, high = _ends(touched).tolist()
    coarse_low, coarse_high = _ends((weights[low : high + 1] > 0).any(dim=0)).tolist()
    return slice(low, high + 1), slice(coarse_low, coarse_high + 1)
