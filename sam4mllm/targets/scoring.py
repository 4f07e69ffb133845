"""Score groups of points: the IoU of SAM's mask with the true mask at the image's size, computed on the device.

The groups of all objects of an image are decoded in batches from one embedding. SAM's predicted IoU is not used,
because it hardly correlates with the true IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.data.rle_runs import run_lengths
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.frame import Upsampling
from sam4mllm.targets.sampling import PointGroups
from sam4mllm.utils.memory import DeviceBatch


@dataclass(frozen=True, slots=True)
class Candidate:
    """One object's groups of points, and what they are scored with.

    Attributes:
        truth: (H, W) bool, the true mask, without ignored pixels.
        groups: The groups.
        boxes_xyxy: (B, 4) float32; each group is scored with each box. None to score groups without a box.
        box_only_xyxy: (A, 4) float32, the boxes that are scored without points.
        ignored: (H, W) bool, pixels that are excluded from both masks.
    """

    truth: npt.NDArray[np.bool_]
    groups: PointGroups
    boxes_xyxy: npt.NDArray[np.float32] | None
    box_only_xyxy: npt.NDArray[np.float32]
    ignored: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The scores of one object.

    Attributes:
        ious: (K,) float32, the IoU of each group, averaged over its boxes.
        box_iou: The mean IoU of the boxes without points.
    """

    ious: npt.NDArray[np.float32]
    box_iou: float


def score_groups(
    segmenter: Segmenter, image: Embeddings, candidates: Sequence[Candidate], batch_size: int | DeviceBatch
) -> list[GroupScores]:
    """Score the objects of one image.

    Args:
        segmenter: The segmenter.
        image: One embedded image (P = 1).
        candidates: Its objects; all have the same number of groups, of points per group and of boxes.
        batch_size: Prompts per decoder call; a `DeviceBatch` keeps a size that was reduced because memory ran out.

    Returns:
        The scores, in the order of the candidates.

    Raises:
        DeviceMemoryError: Memory does not suffice for one prompt.
    """
    if not candidates:
        return []
    batch = prompt_batch(batch_size) if isinstance(batch_size, int) else batch_size
    device = segmenter.device
    truths = [
        _Truth(
            torch.from_numpy(candidate.truth).to(device),
            None if candidate.ignored is None else torch.from_numpy(~candidate.ignored).to(device),
        )
        for candidate in candidates
    ]
    # 1. Score the boxes without points. Without points in the groups, these are the groups' scores, too.
    boxes = _Prompts.of_boxes([candidate.box_only_xyxy for candidate in candidates])
    box_ious = _ious(segmenter, image, boxes, truths, batch).reshape(len(candidates), -1).mean(axis=1)
    group_ious = np.repeat(box_ious[:, None], len(candidates[0].groups), axis=1)
    # 2. Score the groups with each box, and average over the boxes.
    if len(candidates[0].groups.labels):
        prompts = _Prompts.of_groups(candidates)
        ious = _ious(segmenter, image, prompts, truths, batch)
        group_ious = ious.reshape(len(candidates), len(candidates[0].groups), -1).mean(axis=2)
    return [GroupScores(ious, float(box_iou)) for ious, box_iou in zip(group_ious, box_ious, strict=True)]


def prompt_batch(size: int) -> DeviceBatch:
    """Return the batch of prompts for `score_groups`, which starts with `size` prompts."""
    return DeviceBatch(size, "prompts", "free memory on the device, or use a smaller segmenter or smaller images")


@dataclass(frozen=True, slots=True)
class _Truth:
    """An object's true mask (H, W) bool, and the pixels (H, W) bool that are not ignored; None if none is ignored."""

    mask: torch.Tensor
    counted: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Prompts:
    """N prompts of equal shape, sorted by object; `owner` (N,) is the index of each prompt's object."""

    owner: npt.NDArray[np.int64]
    boxes_xyxy: npt.NDArray[np.float32] | None
    points_xy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @staticmethod
    def of_boxes(boxes_xyxy: Sequence[npt.NDArray[np.float32]]) -> _Prompts:
        counts = [len(boxes) for boxes in boxes_xyxy]
        return _Prompts(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate(boxes_xyxy),
            np.zeros((sum(counts), 0, 2), dtype=np.float32),
            np.zeros((sum(counts), 0), dtype=np.int64),
        )

    @staticmethod
    def of_groups(candidates: Sequence[Candidate]) -> _Prompts:
        """Combine each group with each box, in the order object, group, box."""
        boxes, points = [], []
        for candidate in candidates:
            count = 1 if candidate.boxes_xyxy is None else len(candidate.boxes_xyxy)
            points.append(np.repeat(candidate.groups.xy, count, axis=0))
            if candidate.boxes_xyxy is not None:
                boxes.append(np.tile(candidate.boxes_xyxy, (len(candidate.groups), 1)))
        counts = [len(xy) for xy in points]
        labels = np.repeat(np.stack([candidate.groups.labels for candidate in candidates]), counts, axis=0)
        owner = np.repeat(np.arange(len(counts)), counts)
        return _Prompts(owner, np.concatenate(boxes) if boxes else None, np.concatenate(points), labels)


def _ious(
    segmenter: Segmenter, image: Embeddings, prompts: _Prompts, truths: Sequence[_Truth], batch: DeviceBatch
) -> npt.NDArray[np.float32]:
    """Compute the IoU (N,) float32 of each prompt's mask with its object's true mask."""
    device = segmenter.device
    upsampling = segmenter.upsampling(image.sizes_wh[0])
    points, labels = torch.from_numpy(prompts.points_xy).to(device), torch.from_numpy(prompts.labels).to(device)
    boxes = None if prompts.boxes_xyxy is None else torch.from_numpy(prompts.boxes_xyxy).to(device)
    index = torch.zeros(len(prompts.owner), dtype=torch.int64, device=device)

    def score_part(rows: Sequence[int]) -> list[torch.Tensor]:
        part = slice(rows[0], rows[-1] + 1)
        part_boxes = None if boxes is None else boxes[part]
        decoded = segmenter.decode_points(image, index[part], part_boxes, points[part], labels[part])
        # A batch may end within an object and hold several: compare each run of prompts with its object's mask.
        owners = prompts.owner[part]
        ious = []
        for first, last in pairwise([0, *np.cumsum(run_lengths(owners)).tolist()]):
            truth = truths[owners[first]]
            ious.append(coarse_iou(decoded.low_res_logits[first:last], truth.mask, upsampling, truth.counted))
        return ious

    ious = [each for part in batch.map(range(len(prompts.owner)), score_part) for each in part]
    return torch.cat(ious).cpu().numpy()


def coarse_iou(
    coarse: torch.Tensor, truth: torch.Tensor, upsampling: Upsampling, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the IoU (N,) float32 of masks, given as coarse logits, with one true mask at the image's size.

    Only the window of the image that contains the masks is upsampled; the result is that of the full image. Two empty
    masks have IoU 0.

    Args:
        coarse: (N, h, w) logits.
        truth: (H, W) bool, without pixels off `counted`.
        upsampling: The interpolation from (h, w) to (H, W).
        counted: (H, W) bool, the pixels that are not ignored; None for all.
    """
    truth_area = truth.sum().float()
    window = upsampling.window(coarse)
    if window is None:
        return torch.zeros(len(coarse), device=coarse.device)
    masks = (upsampling.logits_in(coarse, window) > 0).flatten(1).float()
    inside = truth[window.rows, window.columns].flatten().float()
    counts = torch.ones_like(inside) if counted is None else counted[window.rows, window.columns].flatten().float()
    # One product counts both areas, exactly: 0 and 1 are exact in every dtype, and so are float32 sums below 2 ** 24.
    intersection, area = (masks @ torch.stack([inside, counts], dim=1)).unbind(dim=1)
    return intersection / (area + truth_area - intersection).clamp(min=1)
