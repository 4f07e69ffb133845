"""Find the distinct objects of samples, by the content of their image file, mask, box and ignored pixels.

Data sets share images and objects under different ids: RefCOCO and gRefCOCO refer to the same annotations of COCO. Such
an object is sampled and scored once, and its target is stored under each of its ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sam4mllm.data.masks import Rle
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import file_sha256
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext

_BROADCAST_HASHES = 16384
"""Hashes that are sent to the other processes at once: a value in torch's key-value store has at most 8 MiB."""


@dataclass(frozen=True, slots=True)
class DistinctObject:
    """An object that is scored once, and the ids that it has in the data sets.

    Attributes:
        hash: See `object_hash`.
        ids: The ids, in the order of the samples.
        item: The object under its first id.
        ignore: The mask of ignored pixels, if the first sample with the object has one.
    """

    hash: str
    ids: tuple[str, ...]
    item: MaskObject
    ignore: Rle | None


@dataclass(frozen=True, slots=True)
class ImageObjects:
    """An image and the objects that phrases refer to in it, each once.

    Attributes:
        image: The image file; the first one if several have the same bytes.
        size_wh: Its size according to the annotation.
        objects: The objects.
    """

    image: Path
    size_wh: tuple[int, int]
    objects: tuple[DistinctObject, ...]


def objects_by_image(samples: Iterable[Sample], processes: DistributedContext = SINGLE_PROCESS) -> list[ImageObjects]:
    """Group the objects of samples by the content of their images, in the order of the samples.

    Objects with a box and no mask are left out: points cannot be scored without a mask. Each image file with an object
    is read once, by the main process, to compute its hash.

    Raises:
        DataError: An object id has two masks or boxes, or is in two images; an image cannot be read.
    """
    # 1. Collect the objects by id.
    by_id: dict[str, tuple[Sample, MaskObject]] = {}
    for sample in samples:
        for item in sample.objects:
            if item.rle is None:
                continue
            first, known = by_id.setdefault(item.id, (sample, item))
            if (first.image, known) != (sample.image, item):
                raise DataError(
                    f"two different objects have the id {item.id}: in {first.image} and {sample.image}; the ids of "
                    "custom data begin with the file's name, so rename one of the two files, or remove one data set"
                )
    # 2. Group the ids by image content, then by object. Two annotated sizes of one content remain two images, so that
    # the size is checked for each of them.
    paths = list(dict.fromkeys(sample.image for sample, _ in by_id.values()))
    content_of = dict(zip(paths, _hash_files(paths, processes), strict=True))
    groups: dict[tuple[str, tuple[int, int]], dict[str, list[tuple[Sample, MaskObject]]]] = {}
    for sample, item in by_id.values():
        content = content_of[sample.image]
        objects = groups.setdefault((content, sample.size_wh), {})
        objects.setdefault(object_hash(content, item, sample.ignore), []).append((sample, item))
    # 3. The first occurrence represents each image and each object.
    images = []
    for objects in groups.values():
        distinct = [
            DistinctObject(digest, tuple(item.id for _, item in found), found[0][1], found[0][0].ignore)
            for digest, found in objects.items()
        ]
        sample = next(iter(objects.values()))[0][0]
        images.append(ImageObjects(sample.image, sample.size_wh, tuple(distinct)))
    return images


def object_hash(image_sha256: str, item: MaskObject, ignore: Rle | None) -> str:
    """Return a SHA-256 in hex of all that an object's target depends on, beside the segmenter and the settings.

    The annotated box is a part of it: negative points are sampled in it, groups are scored with it, and it is stored as
    the target's box. COCO's boxes are not those of the masks, so they cannot be derived.

    Args:
        image_sha256: The SHA-256 in hex of the image file's bytes.
        item: An object of the image, with a mask.
        ignore: The mask of ignored pixels, if any.
    """
    box = [float(side) for side in item.box]
    content = [image_sha256, item.rle, box, ignore]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_files(paths: Sequence[Path], processes: DistributedContext) -> list[str]:
    """Return the SHA-256 in hex of each file in all processes; the main process reads the files.

    Raises:
        DataError: A file cannot be read.
    """
    hashes: list[str] = []
    for start in range(0, len(paths), _BROADCAST_HASHES):
        part = paths[start : start + _BROADCAST_HASHES]
        hashes += processes.broadcast_result(partial(_sha256_of_each, part))
    return hashes


def _sha256_of_each(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"the image {path} cannot be read: {error.strerror}") from error
