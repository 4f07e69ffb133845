"""Resize images into a segmenter's square input, scale coordinates with them, and upsample coarse masks.

An image of (W, H) pixels fills a square of the segmenter's `side`: its longest side is resized to it and the rest
padded (`InputFrame`), or both sides are resized to it (`SquareFrame`). The mask decoder returns logits on a coarse grid
over that square; `Upsampling` interpolates them at the original pixels.
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
    """A square of `side` pixels: an image is resized until its longest side fits, and padded on the right and below.

    Source: `ResizeLongestSide` in segment_anything's `utils/transforms.py`. The `repr` of a frame enters
    `TransformersSam.fingerprint`, so renaming this class or its fields would invalidate all stored targets.
    """

    side: int

    def resized_wh(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Compute the width and height of an image of `size_wh` after resizing, in pixels; both are at least 1."""
        scale = self.side / max(size_wh)
        width, height = (max(int(length * scale + 0.5), 1) for length in size_wh)
        return width, height

    def resize(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize an image (H, W, 3) uint8 RGB to its size in the square, without padding."""
        height, width = image.shape[:2]
        resized_wh = self.resized_wh((width, height))
        if resized_wh == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(resized_wh, Image.Resampling.BILINEAR))

    def pixels(self, images: Sequence[npt.NDArray[np.uint8]], mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        """Resize, normalize and pad images (H, W, 3) uint8 RGB to (P, 3, side, side) float32.

        Args:
            images: P images of any sizes.
            mean: (3, 1, 1) from 0 to 255, on the device of the result.
            std: (3, 1, 1), likewise.

        Raises:
            ValueError: There are no images, or one is not (H, W, 3) uint8.
        """
        if not images:
            raise ValueError("no images to embed")
        batch = torch.zeros(len(images), 3, self.side, self.side, device=mean.device)
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"an image is (H, W, 3) uint8; got {image.shape} {image.dtype}")
            resized = torch.from_numpy(np.array(self.resize(image))).to(mean.device).permute(2, 0, 1)
            height, width = resized.shape[1:]
            # As in segment_anything's Sam.preprocess, the padding is 0 after normalization.
            batch[index, :, :height, :width] = (resized - mean) / std
        return batch

    def scale_xy(self, sizes_wh: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Compute the factors (P, 2) float32 from x and y in pixels of each image to pixels of the square."""
        factors = [
            [resized / length for resized, length in zip(self.resized_wh(size_wh), size_wh, strict=True)]
            for size_wh in sizes_wh
        ]
        return torch.tensor(factors, dtype=torch.float32).reshape(-1, 2)

    def prompt_scale_xy(self, sizes_wh: Sequence[tuple[int, int]], index: torch.Tensor) -> torch.Tensor:
        """Return the factors (N, 2) of `scale_xy` for prompts about the images `index` (N,), on its device."""
        return self.scale_xy(sizes_wh).to(index.device)[index]

    def extent_hw(self, size_wh: tuple[int, int], coarse_side: int) -> tuple[int, int]:
        """Return the rows and columns of logits (coarse_side, coarse_side) that the pixels of an image depend on.

        The other logits are those of padding. `upsampling` has no weights for them.
        """
        width, height = self.resized_wh(size_wh)
        rows, columns = (
            min(int((length - 0.5) * coarse_side / self.side + 0.5) + 1, coarse_side) for length in (height, width)
        )
        return rows, columns

    def upsampling(self, size_wh: tuple[int, int], coarse_side: int) -> Upsampling:
        """Compute the interpolation from logits (coarse_side, coarse_side) to an image of `size_wh`, on the CPU.

        The steps are those of segment_anything's `Sam.postprocess_masks`: bilinear interpolation to the square, crop of
        the padding, bilinear interpolation to the image. Each step is linear and separable, so all of them together are
        one matrix for rows and one for columns.
        """
        (width, height), (resized_width, resized_height) = size_wh, self.resized_wh(size_wh)
        to_square = _linear(coarse_side, self.side)
        return Upsampling(
            rows=(_linear(resized_height, height) @ to_square[:resized_height]).float(),
            columns=(_linear(resized_width, width) @ to_square[:resized_width]).float(),
        )

    def coverage(self, size_wh: tuple[int, int], coarse_side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the matrices by which a mask of an image becomes the covered share of each cell of the coarse grid.

        Returns:
            Rows (coarse_side, H) and columns (coarse_side, W), float32: `rows @ mask @ columns.T` is (coarse_side,
            coarse_side), from 0 to 1. Cells with their center on the padding have only zeros.
        """
        (width, height), (resized_width, resized_height) = size_wh, self.resized_wh(size_wh)
        cell = self.side / coarse_side
        return (
            _overlaps(height, cell * height / resized_height, coarse_side),
            _overlaps(width, cell * width / resized_width, coarse_side),
        )


class SquareFrame(InputFrame):
    """A square of `side` pixels to which both sides of an image are resized, without padding.

    Source: transformers' `Sam2ImageProcessor` and `Sam3ImageProcessor`.
    """

    __slots__ = ()

    def resized_wh(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the square."""
        return self.side, self.side

    def upsampling(self, size_wh: tuple[int, int], coarse_side: int) -> Upsampling:
        """Compute the interpolation in one step, as `Sam2ImageProcessor.post_process_masks` does."""
        width, height = size_wh
        return Upsampling(_linear(coarse_side, height).float(), _linear(coarse_side, width).float())


class Window(NamedTuple):
    """A rectangle of the image, and the cells of the coarse grid that its logits depend on; ends are exclusive."""

    rows: slice
    columns: slice
    coarse_rows: slice
    coarse_columns: slice


@dataclass(frozen=True, slots=True)
class Upsampling:
    """Bilinear interpolation from a coarse grid to an image, as matrices: rows (H, h) and columns (W, w), float32.

    Weights are not negative and each row sums to 1: a pixel's logit is a weighted mean of a few coarse logits.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def to(self, device: torch.device) -> Upsampling:
        """Move the matrices to `device`."""
        return Upsampling(self.rows.to(device), self.columns.to(device))

    def logits(self, coarse: torch.Tensor) -> torch.Tensor:
        """Interpolate coarse logits (N, h, w) to (N, H, W) float32."""
        return torch.matmul(self.rows, torch.matmul(coarse.float(), self.columns.T))

    def masks(self, coarse: torch.Tensor) -> torch.Tensor:
        """Interpolate coarse logits (N, h, w) and threshold them at 0: masks (N, H, W) bool."""
        return self.logits(coarse) > 0

    def logits_in(self, coarse: torch.Tensor, window: Window) -> torch.Tensor:
        """Compute `logits(coarse)[:, window.rows, window.columns]` from the window's cells only."""
        part = coarse[:, window.coarse_rows, window.coarse_columns].float()
        columns = self.columns[window.columns, window.coarse_columns]
        return torch.matmul(self.rows[window.rows, window.coarse_rows], torch.matmul(part, columns.T))

    def window(self, coarse: torch.Tensor) -> Window | None:
        """Find a rectangle of the image that contains all masks of coarse logits (N, h, w); None if all are empty.

        A pixel with no positive coarse logit among its neighbors has no positive logit, so the logits outside the
        rectangle need not be computed.
        """
        positive = (coarse > 0).any(dim=0)
        # One transfer from the device for both axes.
        ends = torch.stack([_first_and_last(positive.any(dim=1)), _first_and_last(positive.any(dim=0))]).tolist()
        (first_row, last_row), (first_column, last_column) = ends
        if first_row > last_row:
            return None
        rows, coarse_rows = _support(self.rows, first_row, last_row)
        columns, coarse_columns = _support(self.columns, first_column, last_column)
        return Window(rows, columns, coarse_rows, coarse_columns)


class UpsamplingCache:
    """The interpolation matrices of one frame on one device, cached for the 64 image sizes used last."""

    def __init__(self, frame: InputFrame, coarse_side: int, device: torch.device) -> None:
        self._frame = frame
        self._coarse_side = coarse_side
        self._device = device
        self._cached: dict[tuple[int, int], Upsampling] = {}

    def get(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the interpolation to an image of `size_wh`."""
        upsampling = self._cached.pop(size_wh, None)
        if upsampling is None:
            upsampling = self._frame.upsampling(size_wh, self._coarse_side).to(self._device)
        # The dictionary is in the order of use: the first size is the one that was used longest ago.
        self._cached[size_wh] = upsampling
        if len(self._cached) > 64:
            del self._cached[next(iter(self._cached))]
        return upsampling


def _linear(source: int, target: int) -> torch.Tensor:
    """Return the matrix (target, source) float64 of 1-D linear interpolation with `align_corners=False`."""
    identity = torch.eye(source, dtype=torch.float64)[None]
    return functional.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T


def _overlaps(pixels: int, cell: float, cells: int) -> torch.Tensor:
    """Return the share (cells, pixels) float32 of each cell of `cell` pixels that each pixel covers; rows sum to 1.

    Rows of cells with their center behind the last pixel are zero.
    """
    starts, lows = torch.arange(cells, dtype=torch.float64) * cell, torch.arange(pixels, dtype=torch.float64)
    shares = (torch.minimum(starts[:, None] + cell, lows + 1) - torch.maximum(starts[:, None], lows)).clamp(min=0)
    shares[starts + cell / 2 >= pixels] = 0
    return (shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)).float()


def _first_and_last(flags: torch.Tensor) -> torch.Tensor:
    """Return the first and last index (2,) where `flags` (n,) is True; (n, -1) if there is none."""
    index = torch.arange(len(flags), device=flags.device)
    return torch.stack([torch.where(flags, index, len(flags)).min(), torch.where(flags, index, -1).max()])


def _support(weights: torch.Tensor, first: int, last: int) -> tuple[slice, slice]:
    """Return the rows of `weights` (H, h) that depend on the cells first to last, and all cells of these rows."""
    dependent = (weights[:, first : last + 1] > 0).any(dim=1)
    low, high = _first_and_last(dependent).tolist()
    coarse_low, coarse_high = _first_and_last((weights[low : high + 1] > 0).any(dim=0)).tolist()
    return slice(low, high + 1), slice(coarse_low, coarse_high + 1)
