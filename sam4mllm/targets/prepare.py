"""From samples to stored targets: each object's groups are drawn, judged by SAM and the best kept. It resumes.

Work goes by shards of whole images, planned from the data alone, so a resumed run writes the same files as one that
was never stopped, and one of several processes the same as one of a single process. This module knows no phrases and
no text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam4mllm.data.images import load_image
from sam4mllm.data.masks import Rle, decode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.targets.sampling import PointGroups, draw_groups, jittered_boxes, seeded
from sam4mllm.targets.scoring import Candidate, GroupScores, score_groups
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.targets.store import ObjectTarget, SkippedObject, TargetStore
from sam4mllm.utils.atomic_io import file_sha256
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar

SHARD_OBJECTS = 256
"""Objects after which a shard ends with its image: what a killed run loses at most."""


@dataclass(frozen=True, slots=True)
class ImageObjects:
    """An image and the objects in it that phrases mean, each once.

    `ignores` holds, by object id, the mask of pixels that count for nobody, where the first phrase about it has one.
    """

    image: Path
    size_wh: tuple[int, int]
    objects: tuple[MaskObject, ...]
    ignores: dict[str, Rle]


def compute_targets(
    samples: Iterable[Sample],
    segmenter: Segmenter,
    settings: TargetSettings,
    store_root: Path,
    processes: DistributedContext = SINGLE_PROCESS,
) -> TargetStore:
    """The store with a target, or a reason why there is none, for every object of `samples`; computes what is missing.

    Several processes share the shards out among them, and return when all are there.

    Raises:
        DataError: an image that is missing, broken or of another size than its annotation; an object id that names two
            masks; a store that cannot be used.
    """
    images = images_of(samples)

    def settle() -> dict[str, object]:
        """The key of the store, which is then there: on several machines, several processes would meet in making it."""
        key = store_key(images, segmenter, settings)
        TargetStore.open(store_root, key)
        return key

    store = TargetStore.open(store_root, processes.broadcast_result(settle))
    plan = plan_shards(images)
    counts = [sum(len(image.objects) for image in shard) for shard in plan]
    done = set(processes.broadcast_result(store.shards))
    pending = [number for number in range(len(plan)) if number not in done]
    finished = sum(counts[number] for number in done if number < len(plan))
    with bar("targets", sum(counts), done=finished, unit="objects", shown=processes.is_main) as advance:
        advance = processes.aggregate_progress(advance)
        for number in processes.distribute(pending):
            results: list[ObjectTarget | SkippedObject] = []
            for image in plan[number]:
                results += score_image_objects(image, segmenter, settings)
                advance(len(image.objects))
            store.write_shard(number, results)
        processes.barrier()
        advance(0)
    return store


def images_of(samples: Iterable[Sample]) -> list[ImageObjects]:
    """The images of `samples` with their objects, in the order in which they are met.

    An object with a box and no mask is left out: there is nothing to judge points by, and its box needs no judging.

    Raises:
        DataError: an object id that names two masks, or two images.
    """
    met: dict[str, tuple[Path, MaskObject]] = {}
    images: dict[Path, tuple[tuple[int, int], list[MaskObject], dict[str, Rle]]] = {}
    for sample in samples:
        for item in sample.objects:
            if item.rle is None:
                continue
            if item.id in met:
                if met[item.id] != (sample.image, item):
                    raise DataError(
                        f"two different objects are named {item.id}: in {met[item.id][0]} and {sample.image}; the ids "
                        "of own data begin with the file's name, so rename one of the two files, or take one set out"
                    )
                continue
            met[item.id] = (sample.image, item)
            _, objects, ignores = images.setdefault(sample.image, (sample.size_wh, [], {}))
            objects.append(item)
            if sample.ignore is not None:
                ignores[item.id] = sample.ignore
    return [
        ImageObjects(image, size_wh, tuple(objects), ignores) for image, (size_wh, objects, ignores) in images.items()
    ]


def plan_shards(images: Sequence[ImageObjects]) -> list[list[ImageObjects]]:
    """The images, in their order, in runs of at least `SHARD_OBJECTS` objects; the last run may have fewer."""
    shards: list[list[ImageObjects]] = []
    room = 0
    for image in images:
        if room <= 0:
            shards.append([])
            room = SHARD_OBJECTS
        shards[-1].append(image)
        room -= len(image.objects)
    return shards


def store_key(images: Sequence[ImageObjects], segmenter: Segmenter, settings: TargetSettings) -> dict[str, object]:
    """All that decides the targets: the images' bytes and their objects, the segmenter, the settings.

    Paths do not count, so a data set may move.

    Raises:
        DataError: an image that cannot be read.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for image, content in zip(images, pool.map(_content, (p.image for p in images)), strict=True):
            objects = [
                [item.id, item.rle and item.rle["counts"], list(item.box)]
                + ([image.ignores[item.id]["counts"]] if item.id in image.ignores else [])
                for item in image.objects
            ]
            digest.update(json.dumps([content, image.size_wh, objects]).encode())
    return {
        "data": digest.hexdigest(),
        "segmenter": segmenter.fingerprint,
        "settings": settings.deciding(),
        "shard_objects": SHARD_OBJECTS,
    }


def score_image_objects(
    image: ImageObjects, segmenter: Segmenter, settings: TargetSettings
) -> list[ObjectTarget | SkippedObject]:
    """A target, or the reason why there is none, for each object of one image, in their order.

    Raises:
        DataError: the image is missing, broken or of another size than its annotation.
    """
    pixels = load_annotated(image.image, image.size_wh)
    candidates: list[Candidate | str] = [
        _candidate(item, image.ignores.get(item.id), image.size_wh, settings) for item in image.objects
    ]
    ready = [candidate for candidate in candidates if isinstance(candidate, Candidate)]
    scores = iter(score_groups(segmenter, segmenter.embed([pixels]), ready, settings.batch_size) if ready else [])
    return [
        SkippedObject(item.id, candidate)
        if isinstance(candidate, str)
        else _target(item, candidate.groups, next(scores), settings)
        for item, candidate in zip(image.objects, candidates, strict=True)
    ]


def load_annotated(image: Path, size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels (H, W, 3) RGB, of the size that its annotation says.

    Raises:
        DataError: it is missing, broken or of another size.
    """
    pixels = load_image(image)
    found_wh = (pixels.shape[1], pixels.shape[0])
    if found_wh != size_wh:
        raise DataError(f"{image} is {found_wh} (W, H), but its annotation says {size_wh}")
    return pixels


def _candidate(
    item: MaskObject, ignore: Rle | None, size_wh: tuple[int, int], settings: TargetSettings
) -> Candidate | str:
    """The object's groups and the boxes to judge them under; text when no group can be drawn."""
    ignored = None if ignore is None else decode(ignore)
    truth = item.mask() if ignored is None else item.mask() & ~ignored
    try:
        groups = draw_groups(
            truth,
            item.box,
            seeded(settings.seed, "points", item.id),
            groups=settings.groups,
            positives=settings.positives,
            negatives=settings.negatives,
            widen=settings.widen,
            ignored=ignored,
        )
    except DataError as error:
        return str(error)
    boxes = np.array([item.box], dtype=np.float32)
    if settings.judge == "jittered":
        rng = seeded(settings.seed, "boxes", item.id)
        boxes = jittered_boxes(item.box, size_wh, rng, share=settings.jitter, count=settings.jitter_boxes)
    return Candidate(truth, groups, None if settings.judge == "none" else boxes, boxes, ignored)


def _target(
    item: MaskObject, groups: PointGroups, scores: GroupScores, settings: TargetSettings
) -> ObjectTarget | SkippedObject:
    """The chosen groups as prompts with the true box; a reason when even the best group stays below the floor."""
    best = float(scores.ious.max())
    if best < settings.min_iou:
        return SkippedObject(item.id, f"the best group's IoU {best:.3f} is below min_iou {settings.min_iou}")
    # The groups are drawn at random, so the first ones are random ones. Of equal groups, the one drawn first.
    chosen = np.arange(settings.keep)
    if settings.choose == "top":
        chosen = np.argsort(-scores.ious, kind="stable")[: settings.keep]
        chosen = chosen[scores.ious[chosen] >= settings.min_iou]
    return ObjectTarget(
        item.id,
        tuple(SamPrompt(item.box, groups.points(group)) for group in chosen.tolist()),
        tuple(float(scores.ious[group]) for group in chosen),
        scores.box_iou,
        float(scores.ious.mean()),
        float(scores.ious.std()),
    )


def _content(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"the image {path} cannot be read: {error.strerror}") from error
