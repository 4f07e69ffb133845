"""The leakage filter: finds training images that belong to held-out splits.

RefCOCO, RefCOCO+ and RefCOCOg split one pool of images in different ways, so the training split of one holds test
images of another. Two images are the same if they are one file, if their names hold the same COCO id, or, unless both
names are COCO's, if their files hold the same bytes. A name of twelve digits alone may be another program's, such as
that of a frame of a video, so files of such names and equal ids are compared. Generated images have names in COCO's
form, but no COCO ids; images of Visual Genome have other names, and their COCO ids are in its `image_data.json`. Only
files of equal length are hashed, so the filter costs little more than listing the folders. An image that was re-encoded
under another name is not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.reading import TRAIN, coco_ids_of, images_of_splits, read_dialogues, read_samples
from sam4mllm.data.registry import is_generated
from sam4mllm.utils.atomic_io import file_sha256

Reason = Literal["file", "coco id", "content"]

# COCO_train2014_000000123456.jpg, and since 2017 000000123456.jpg. An id is the same image in all years.
_COCO_NAME = re.compile(r"(COCO_(?:train|val|test)\d{4}_)?(\d{12})")
# The largest id of COCO's images of 2014 to 2017; a time such as 202601311200 is larger.
_LARGEST_COCO_ID = 581_929
# Two files show one image if thumbnails of this side differ by less than this on average, of 255.
_THUMBNAIL, _MAX_DIFFERENCE = 16, 8.0


@dataclass(slots=True)
class LeakageRemoval:
    """What the filter removed from one training set: the number of phrases or dialogues, and why for each image."""

    name: str
    phrases: int = 0
    images: dict[Path, Reason] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the set's record in leakage.json: counts only."""
        reasons = list(self.images.values())
        by = {reason: reasons.count(reason) for reason in ("file", "coco id", "content")}
        return {"set": self.name, "phrases": self.phrases, "images": len(self.images), "by": by}

    def __str__(self) -> str:
        return f"{self.name}: removed {self.phrases} phrases about {len(self.images)} images"


class LeakageFilter:
    """Decides for an image whether it belongs to a held-out split.

    Args:
        splits: The images of the held-out splits, by the splits' names.
        coco_ids: The COCO ids of images whose names do not hold them.
    """

    def __init__(self, splits: Mapping[str, Sequence[Path]], coco_ids: Mapping[Path, int] | None = None) -> None:
        self._annotated_coco_ids = coco_ids or {}
        self.images = {name: len(set(images)) for name, images in splits.items()}
        """The number of images of each held-out split."""
        self._held_out = {image for images in splits.values() for image in images}
        self._is_generated: dict[Path, bool] = {}
        self._by_coco_id: dict[int, list[Path]] = {}
        for image in self._held_out:
            if (image_id := self._coco_id(image)) is not None:
                self._by_coco_id.setdefault(image_id, []).append(image)
        self._reasons: dict[Path, Reason | None] = {}
        self._by_length: dict[int, list[Path]] | None = None
        self._hashes: dict[Path, str] = {}

    def reason(self, image: Path) -> Reason | None:
        """Return why the image is a held-out one; None if it is not."""
        if image not in self._reasons:
            self._reasons[image] = self._find_reason(image)
        return self._reasons[image]

    def _find_reason(self, image: Path) -> Reason | None:
        # 1. The same file.
        if image in self._held_out:
            return "file"
        # 2. The same COCO id.
        image_id = self._coco_id(image)
        for other in [] if image_id is None else self._by_coco_id.get(image_id, ()):
            # An image that was resized shows the same as COCO's, but has another name and other bytes.
            is_annotated = image in self._annotated_coco_ids or other in self._annotated_coco_ids
            if is_annotated or (_has_prefix(image) and _has_prefix(other)) or self._show_one_image(image, other):
                return "coco id"
        # 3. The same bytes, where names do not decide. A missing file is skipped here, and reported where it is loaded.
        if self._by_length is None:
            self._by_length = {}
            for path in self._held_out:
                if path.is_file():
                    self._by_length.setdefault(path.stat().st_size, []).append(path)
        same_length = self._by_length.get(image.stat().st_size, []) if self._by_length and image.is_file() else []
        is_coco = image_id is not None and _has_prefix(image)
        candidates = [path for path in same_length if not (is_coco and self._is_coco(path))]
        return "content" if any(self._hash(path) == self._hash(image) for path in candidates) else None

    def _coco_id(self, image: Path) -> int | None:
        """Return the COCO id that is annotated, or that the image's name holds; None also for generated images."""
        if image in self._annotated_coco_ids:
            return self._annotated_coco_ids[image]
        folder = image.parent
        if folder not in self._is_generated:
            absolute = folder.absolute()
            self._is_generated[folder] = any(is_generated(each) for each in (absolute, *absolute.parents))
        return None if self._is_generated[folder] else coco_id(image)

    def _is_coco(self, image: Path) -> bool:
        return _has_prefix(image) and self._coco_id(image) is not None

    def _show_one_image(self, image: Path, other: Path) -> bool:
        """Return whether two files show one image, by their bytes or at a small size; True if one cannot be read."""
        if not (image.is_file() and other.is_file()):
            return True
        if image.stat().st_size == other.stat().st_size and self._hash(image) == self._hash(other):
            return True
        try:
            difference = np.abs(_thumbnail(image) - _thumbnail(other)).mean()
        # A damaged image may raise nearly anything, as in images.py; it is reported where it is loaded.
        except Exception:
            return True
        return bool(difference < _MAX_DIFFERENCE)

    def _hash(self, image: Path) -> str:
        if image not in self._hashes:
            self._hashes[image] = file_sha256(image)
        return self._hashes[image]


def leakage_filter_for(data: DataSection) -> LeakageFilter:
    """Build the filter of a recipe from the splits in `guard`, or the default ones; it is empty if `guard` is off.

    The default: `validation`, and every split other than train, under their roots, of the data sets in `train` and
    `validation`, except those that are trained on. With a list, `validation` is held out as well. Every sample of
    `validation` is held out, even if its `limit` uses few of them.

    Raises:
        DataError: A data set cannot be read.
    """
    if data.guard == []:
        return LeakageFilter({})
    annotated = [*data.train, *(data.guard or ())]
    coco_ids = {image: number for entry in annotated for image, number in coco_ids_of(entry).items()}
    splits: dict[str, list[Path]] = {}
    if data.validation is not None:
        splits[data.validation.name] = _images_of(data.validation.model_copy(update={"limit": None}))
    if data.guard is not None:
        for entry in data.guard:
            splits[entry.name] = [*splits.get(entry.name, ()), *_images_of(entry)]
        return LeakageFilter(splits, coco_ids)
    trained_on = {(entry.root, _dataset_of_splits(entry), entry.split) for entry in data.train}
    done = set()
    for entry in [*data.train, *([data.validation] if data.validation is not None else [])]:
        source = entry.root, _dataset_of_splits(entry), entry.split_by
        if entry.root is None or source in done:
            continue
        done.add(source)
        for split, images in images_of_splits(entry).items():
            if split != TRAIN and (entry.root, _dataset_of_splits(entry), split) not in trained_on:
                name = f"{_dataset_of_splits(entry)} {split}"
                splits[name] = [*splits.get(name, ()), *images]
    return LeakageFilter(splits, coco_ids)


def _dataset_of_splits(entry: DataEntry) -> str:
    """Return the data set that the entry's splits belong to; for the explanations it is ReasonSeg."""
    return entry.row.part_of or entry.dataset


def _images_of(entry: DataEntry) -> list[Path]:
    if entry.is_chat:
        return [dialogue.image for dialogue in read_dialogues(entry) if dialogue.image is not None]
    if entry.root is not None and entry.limit is None:
        images = images_of_splits(entry)
        if entry.split in images:
            return images[entry.split]
    # Also for a split that does not exist: the reader's error lists those that do.
    return [sample.image for sample in read_samples(entry)]


def coco_id(image: Path) -> int | None:
    """Return the COCO id in an image's file name; None if the name has another form or a number that COCO lacks."""
    match = _COCO_NAME.fullmatch(image.stem)
    image_id = int(match[2]) if match else 0
    return image_id if 0 < image_id <= _LARGEST_COCO_ID else None


def _has_prefix(image: Path) -> bool:
    """Return whether a name begins as COCO's names of 2014 do, which other programs do not write."""
    match = _COCO_NAME.fullmatch(image.stem)
    return match is not None and match[1] is not None


def _thumbnail(path: Path) -> npt.NDArray[np.float32]:
    """Return a small gray image (16, 16) float32 of a file."""
    with Image.open(path) as image:
        image.draft("L", (4 * _THUMBNAIL, 4 * _THUMBNAIL))
        small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
