"""How well SAM does with each group of points: IoU with the true mask, at the image's size, computed on the device.

SAM's own guess of that IoU is not used (it hardly correlates with it). The groups of all objects of an image are
decoded in device batches from one embedding. This module draws nothing and stores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.frame import Upsampling
from sam4mllm.targets.sampling import PointGroups


@dataclass(frozen=True, slots=True)
class Candidate:
    """One object's groups, and what they are judged by.

    truth (H, W) bool is the true mask. Each group is judged under every box of `boxes_xyxy` (B, 4) float32, or without
    a box if that is None; the box alone is judged with `alone_xyxy` (A, 4) float32. Pixels of `ignored` (H, W) bool are
    none of the truth, and no fault of a mask that has them.
    """

    truth: npt.NDArray[np.bool_]
    groups: PointGroups
    boxes_xyxy: npt.NDArray[np.float32] | None
    alone_xyxy: npt.NDArray[np.float32]
    ignored: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class GroupScores:
    """IoU of each group (K,) float32, the mean over its boxes, and the mean IoU of the boxes alone."""

    ious: npt.NDArray[np.float32]
    box_iou: float


def score_groups(
    segmenter: Segmenter, image: Embeddings, candidates: Sequence[Candidate], batch_size: int
) -> list[GroupScores]:
    """The scores of the objects of one embedded image (P = 1), in their order; `batch_size` prompts per decoder call.

    All candidates have the same number of groups, of points a group and of boxes.
    """
    if not candidates:
        return []
    device = segmenter.device
    truths = [
        _Truth(
            torch.from_numpy(candidate.truth).to(device),
            None if candidate.ignored is None else torch.from_numpy(~candidate.ignored).to(device),
        )
        for candidate in candidates
    ]
    alone = _Prompts.of_boxes([candidate.alone_xyxy for candidate in candidates])
    alone_ious = _ious(segmenter, image, alone, truths, batch_size).reshape(len(candidates), -1).mean(axis=1)
    group_ious = np.repeat(alone_ious[:, None], len(candidates[0].groups), axis=1)
    if len(candidates[0].groups.labels):
        prompts = _Prompts.of_groups(candidates)
        ious = _ious(segmenter, image, prompts, truths, batch_size)
        group_ious = ious.reshape(len(candidates), len(candidates[0].groups), -1).mean(axis=2)
    return [GroupScores(ious, float(box_iou)) for ious, box_iou in zip(group_ious, alone_ious, strict=True)]


@dataclass(frozen=True, slots=True)
class _Truth:
    """An object's true mask (H, W) bool, and the pixels that count; None where all do."""

    mask: torch.Tensor
    counted: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Prompts:
    """N prompts of one shape, object by object, and which object each belongs to."""

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
        """Each group under each box: the groups of an object one after the other, the boxes of a group side by side."""
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
    segmenter: Segmenter, image: Embeddings, prompts: _Prompts, truths: Sequence[_Truth], batch_size: int
) -> npt.NDArray[np.float32]:
    """IoU (N,) of each prompt's mask with its object's true mask."""
    device = segmenter.device
    upsampling = segmenter.upsampling(image.sizes_wh[0])
    points, labels = torch.from_numpy(prompts.points_xy).to(device), torch.from_numpy(prompts.labels).to(device)
    boxes = None if prompts.boxes_xyxy is None else torch.from_numpy(prompts.boxes_xyxy).to(device)
    index = torch.zeros(len(prompts.owner), dtype=torch.int64, device=device)
    found: list[torch.Tensor] = []
    for start in range(0, len(prompts.owner), batch_size):
        part = slice(start, start + batch_size)
        chunk_boxes = None if boxes is None else boxes[part]
        decoded = segmenter.decode_points(image, index[part], chunk_boxes, points[part], labels[part])
        owners = prompts.owner[part]
        cuts = np.flatnonzero(np.diff(owners)) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(owners)], strict=True):
            truth = truths[owners[first]]
            found.append(coarse_iou(decoded.low_res_logits[first:last], truth.mask, upsampling, truth.counted))
    return torch.cat(found).cpu().numpy()


def coarse_iou(
    coarse: torch.Tensor, truth: torch.Tensor, upsampling: Upsampling, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """IoU (N,) float32, at the image's size, of the masks of coarse logits (N, h, w) with one mask (H, W) bool.

    Only the part of the image where some mask may have pixels is brought to full size; the figures are those of the
    whole. Two empty masks have IoU 0, as there is nothing that was found. Where `counted` (H, W) bool is given, pixels
    off it count for nobody; the truth has none of them.
    """
    truth_area = truth.sum().float()
    window = upsampling.window(coarse)
    if window is None:
        return torch.zeros(len(coarse), device=coarse.device)
    masks = (upsampling.logits_in(coarse, window) > 0).flatten(1).float()
    inside = truth[window.rows, window.columns].flatten().float()
    counts = torch.ones_like(inside) if counted is None else counted[window.rows, window.columns].flatten().float()
    # Pixel counts by one product: 0 and 1 are exact in every number type, and so are sums below 2 ** 24.
    intersection, area = (masks @ torch.stack([inside, counts], dim=1)).unbind(dim=1)
    return intersection / (area + truth_area - intersection).clamp(min=1)
