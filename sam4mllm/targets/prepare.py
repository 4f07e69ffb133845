"""Compute training targets: sample groups of points per object, score them with SAM, and store the best.

Source: prompt-point generation (PPG) in SAM4MLLM, arXiv 2409.10542. The work is divided into shards of complete images,
planned from the data only, so a resumed job and a job of several processes write the same bytes as an uninterrupted job
of one process. An object that several data sets share is scored once (`objects.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam4mllm.data.images import load_image
from sam4mllm.data.masks import decode
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.targets.objects import DistinctObject, ImageObjects, objects_by_image
from sam4mllm.targets.sampling import PointGroups, draw_groups, jittered_boxes, seeded_rng
from sam4mllm.targets.scoring import Candidate, GroupScores, prompt_batch, score_groups
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget, SkippedObject, TargetStore
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock, remove_stale_lock
from sam4mllm.utils.memory import DeviceBatch
from sam4mllm.utils.progress import bar

SHARD_OBJECTS = 256
"""A shard ends with the image that reaches this number of objects; an interrupted job loses at most one per process."""


def compute_targets(
    samples: Iterable[Sample],
    segmenter: Segmenter,
    settings: TargetSettings,
    store_root: Path,
    processes: DistributedContext = SINGLE_PROCESS,
) -> TargetStore:
    """Compute the missing targets of `samples` and return the store, with a target or a reason for every object id.

    Objects with equal image bytes, masks, boxes and ignored pixels are scored once, whatever their ids are.

    Args:
        samples: The samples; objects without a mask are left out.
        segmenter: The segmenter that scores groups of points.
        settings: How groups are sampled, scored and chosen.
        store_root: The folder of all stores.
        processes: The processes that divide the shards among them; all return when all shards exist.

    Raises:
        DataError: An image is missing, damaged or of another size than its annotation; an object id has two masks; the
            store cannot be used.
        DeviceMemoryError: The device's memory does not suffice for one image and one prompt; smaller batches have been
            tried.
        LaunchError: Another job computes targets of the same store.
    """
    images = objects_by_image(samples, processes)

    def create_store() -> dict[str, object]:
        key = store_key(images, segmenter, settings)
        TargetStore.open(store_root, key)
        return key

    # 1. The main process computes the key and creates the store: on a shared disk, several processes would collide.
    store = TargetStore.open(store_root, processes.broadcast_result(create_store))
    # 2. Plan all shards, and leave out the existing ones.
    plan = plan_shards(images)
    counts = [sum(len(image.objects) for image in shard) for shard in plan]
    done = set(processes.broadcast_result(store.shards))
    pending = [number for number in range(len(plan)) if number not in done]
    finished = sum(counts[number] for number in done if number < len(plan))
    if processes.is_main and not pending:
        remove_stale_lock(store.path)
    # 3. Compute this process's part of the missing shards.
    batch = prompt_batch(settings.batch_size)
    with (
        folder_lock(store.path, "computing targets", active=processes.is_main and bool(pending)),
        bar("targets", sum(counts), done=finished, unit="objects", shown=processes.is_main) as advance,
    ):
        advance = processes.aggregate_progress(advance)
        for number in processes.distribute(pending):
            results: list[ObjectTarget | SkippedObject] = []
            for image in plan[number]:
                results += score_image_objects(image, segmenter, settings, batch)
                advance(len(image.objects))
            store.write_shard(number, results)
        # 4. Wait for the other processes' shards, and show the final count.
        processes.barrier()
        advance(0)
    return store


def plan_shards(images: Sequence[ImageObjects]) -> list[list[ImageObjects]]:
    """Divide the images, in their order, into shards of at least `SHARD_OBJECTS` objects; the last may have fewer."""
    shards: list[list[ImageObjects]] = []
    remaining = 0
    for image in images:
        if remaining <= 0:
            shards.append([])
            remaining = SHARD_OBJECTS
        shards[-1].append(image)
        remaining -= len(image.objects)
    return shards


def store_key(images: Sequence[ImageObjects], segmenter: Segmenter, settings: TargetSettings) -> dict[str, object]:
    """Compute the key of a store: a digest of the objects and their ids, the segmenter's fingerprint, and the settings.

    The objects' hashes contain the bytes of their images. Paths are not part of the key, so a data set may be moved.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(json.dumps([[each.hash, each.ids] for each in image.objects]).encode())
    return {
        "data": digest.hexdigest(),
        "segmenter": segmenter.fingerprint,
        "settings": settings.key_settings(),
        "shard_objects": SHARD_OBJECTS,
    }


def score_image_objects(
    image: ImageObjects, segmenter: Segmenter, settings: TargetSettings, batch: DeviceBatch
) -> list[ObjectTarget | SkippedObject]:
    """Compute a target, or the reason for skipping it, for each object of one image, under each of its ids.

    Raises:
        DataError: The image is missing, damaged or of another size than its annotation.
        DeviceMemoryError: Memory does not suffice for the image, or for one prompt.
    """
    pixels = load_annotated_image(image.image, image.size_wh)
    candidates = [_candidate(each, image.size_wh, settings) for each in image.objects]
    scorable = [candidate for candidate in candidates if isinstance(candidate, Candidate)]
    scores = iter(_scores(pixels, segmenter, scorable, batch))
    results = [
        SkippedObject(each.item.id, each.hash, candidate)
        if isinstance(candidate, str)
        else _target(each, candidate.groups, next(scores), settings)
        for each, candidate in zip(image.objects, candidates, strict=True)
    ]
    return [
        replace(result, object_id=object_id)
        for each, result in zip(image.objects, results, strict=True)
        for object_id in each.ids
    ]


def _scores(
    pixels: npt.NDArray[np.uint8], segmenter: Segmenter, candidates: Sequence[Candidate], batch: DeviceBatch
) -> list[GroupScores]:
    """Embed one image and score its objects."""
    if not candidates:
        return []
    one_image = DeviceBatch(1, "images", "free memory on the device, or use a smaller segmenter")
    (image,) = one_image.map([pixels], segmenter.embed)
    return score_groups(segmenter, image, candidates, batch)


def load_annotated_image(image: Path, size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Load the pixels (H, W, 3) uint8 RGB of an image and check its size.

    Raises:
        DataError: The image is missing, damaged or of another size than `size_wh`, that of its annotation.
    """
    pixels = load_image(image)
    actual_wh = (pixels.shape[1], pixels.shape[0])
    if actual_wh != size_wh:
        raise DataError(f"{image} is {actual_wh} (W, H), but its annotation is for {size_wh}")
    return pixels


def _candidate(distinct: DistinctObject, size_wh: tuple[int, int], settings: TargetSettings) -> Candidate | str:
    """Sample the object's groups and the boxes that they are scored with; return the reason if there are no groups."""
    box = distinct.item.box
    ignored = None if distinct.ignore is None else decode(distinct.ignore)
    truth = distinct.item.mask() if ignored is None else distinct.item.mask() & ~ignored
    try:
        groups = draw_groups(
            truth,
            box,
            seeded_rng(settings.seed, "points", distinct.hash),
            groups=settings.groups,
            positives=settings.positives,
            negatives=settings.negatives,
            margin=settings.widen,
            ignored=ignored,
        )
    except DataError as error:
        return str(error)
    boxes = np.array([box], dtype=np.float32)
    if settings.judge == "jittered":
        rng = seeded_rng(settings.seed, "boxes", distinct.hash)
        boxes = jittered_boxes(box, size_wh, rng, share=settings.jitter, count=settings.jitter_boxes)
    return Candidate(truth, groups, None if settings.judge == "none" else boxes, boxes, ignored)


def _target(
    distinct: DistinctObject, groups: PointGroups, scores: GroupScores, settings: TargetSettings
) -> ObjectTarget | SkippedObject:
    """Choose groups as prompts with the true box; skip the object if its best group is below `min_iou`."""
    best = float(scores.ious.max())
    if best < settings.min_iou:
        reason = f"the best group's IoU {best:.3f} is below min_iou {settings.min_iou}"
        return SkippedObject(distinct.item.id, distinct.hash, reason)
    # The first groups are a random choice, since groups are sampled at random. Among equal IoUs, the first group wins.
    chosen = np.arange(settings.keep)
    if settings.choose == "top":
        chosen = np.argsort(-scores.ious, kind="stable")[: settings.keep]
        chosen = chosen[scores.ious[chosen] >= settings.min_iou]
    return ObjectTarget(
        distinct.item.id,
        distinct.hash,
        tuple(SamPrompt(distinct.item.box, groups.points(group)) for group in chosen.tolist()),
        tuple(float(scores.ious[group]) for group in chosen),
        scores.box_iou,
        float(scores.ious.mean()),
        float(scores.ious.std()),
    )
