"""The leakage guard: which images of a mixture are images that something is evaluated on.

RefCOCO, RefCOCO+ and RefCOCOg divide one pool of images in different ways, so one's training split holds another's
test images. Two images are the same when they are one file, when their names hold the same COCO id, or, where names
cannot tell (not both are COCO's), when their files hold the same bytes. Generated images have COCO's names, but are
not COCO's. Only files of equal length are hashed, so the guard costs little more than a look at the folders. An image
that was encoded anew under another name is not found. This module does not know what is said about an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sam4mllm.data.entry import CHAT_SETS, DataEntry, DataSection
from sam4mllm.data.generated import is_generated
from sam4mllm.data.registry import KnownImages, images_of_splits, read_dialogues, read_samples
from sam4mllm.utils.digests import file_sha256

Reason = Literal["file", "coco id", "content"]

# COCO's own names: COCO_train2014_000000123456.jpg, and since 2017 000000123456.jpg. An id is one image in all years.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")


@dataclass(slots=True)
class LeakageRemoval:
    """What the guard took out of one set: how many phrases or chats, and the images that they were about and why."""

    name: str
    phrases: int = 0
    images: dict[Path, Reason] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For leakage.json: counts alone."""
        reasons = list(self.images.values())
        by = {reason: reasons.count(reason) for reason in ("file", "coco id", "content")}
        return {"set": self.name, "phrases": self.phrases, "images": len(self.images), "by": by}

    def __str__(self) -> str:
        return f"{self.name}: {self.phrases} phrases about {len(self.images)} images left out"


class LeakageFilter:
    """Tells of an image whether it is among the guarded ones. `splits` are the guarded images by their split."""

    def __init__(self, splits: Mapping[str, Sequence[Path]]) -> None:
        self.images = {name: len(set(images)) for name, images in splits.items()}
        self._files = {image for images in splits.values() for image in images}
        self._generated: dict[Path, bool] = {}
        self._coco_ids = {self._coco_id(image) for image in self._files} - {None}
        self._told: dict[Path, Reason | None] = {}
        self._lengths: dict[int, list[Path]] | None = None
        self._hashes: dict[Path, str] = {}

    def reason(self, image: Path) -> Reason | None:
        """Why the image counts as a guarded one; None where it does not."""
        if image not in self._told:
            self._told[image] = self._find(image)
        return self._told[image]

    def _find(self, image: Path) -> Reason | None:
        if image in self._files:
            return "file"
        identity = self._coco_id(image)
        if identity in self._coco_ids:
            return "coco id"
        if self._lengths is None:
            self._lengths = {}
            for guarded in self._files:
                if guarded.is_file():
                    self._lengths.setdefault(guarded.stat().st_size, []).append(guarded)
        # An image that is not on disk has no content to compare; whoever needs it says that it is missing.
        alike = self._lengths.get(image.stat().st_size, []) if self._lengths and image.is_file() else []
        unnamed = [guarded for guarded in alike if identity is None or self._coco_id(guarded) is None]
        return "content" if any(self._hash(guarded) == self._hash(image) for guarded in unnamed) else None

    def _coco_id(self, image: Path) -> int | None:
        """The COCO id in an image's name; None also for an image below a folder of generated data."""
        folder = image.parent
        if folder not in self._generated:
            above = folder.absolute()
            self._generated[folder] = any(is_generated(each) for each in (above, *above.parents))
        return None if self._generated[folder] else coco_id(image)

    def _hash(self, image: Path) -> str:
        """SHA-256 of the file's bytes."""
        if image not in self._hashes:
            self._hashes[image] = file_sha256(image)
        return self._hashes[image]


def leakage_filter_for(data: DataSection, known: KnownImages | None = None) -> LeakageFilter:
    """The guard of a recipe: the splits that it lists, or those that it has by default; empty where it is off.

    `known` are the images of sets that were parsed already, as for `images_of_splits`.

    By default these are `validation` and every split but train, under their roots, of the data sets in the mixture and
    in `validation`. A split that the recipe itself trains on is not guarded. `validation` is guarded beside a list as
    well, and all of it, however few of its samples are used.

    Raises:
        DataError: a data set cannot be read.
    """
    if data.guard == []:
        return LeakageFilter({})
    known = {} if known is None else known
    splits: dict[str, list[Path]] = {}
    if data.validation is not None:
        splits[data.validation.name] = _images_of(data.validation.model_copy(update={"limit": None}), known)
    if data.guard is not None:
        for entry in data.guard:
            splits[entry.name] = [*splits.get(entry.name, ()), *_images_of(entry, known)]
        return LeakageFilter(splits)
    trained = {(entry.root, _folder_name(entry), entry.split) for entry in data.train}
    looked_at = set()
    for entry in [*data.train, *([data.validation] if data.validation is not None else [])]:
        place = entry.root, _folder_name(entry), entry.split_by
        if entry.root is None or place in looked_at:
            continue
        looked_at.add(place)
        for split, images in images_of_splits(entry, known).items():
            if split != "train" and (entry.root, _folder_name(entry), split) not in trained:
                name = f"{_folder_name(entry)} {split}"
                splits[name] = [*splits.get(name, ()), *images]
    return LeakageFilter(splits)


def _folder_name(entry: DataEntry) -> str:
    """The data set whose splits an entry belongs to: the explanations are ReasonSeg's."""
    return "reasonseg" if entry.dataset == "reasonseg-explanations" else entry.dataset


def _images_of(entry: DataEntry, known: KnownImages) -> list[Path]:
    if entry.dataset in CHAT_SETS:
        return [dialogue.image for dialogue in read_dialogues(entry)]
    if entry.root is not None and entry.limit is None:
        found = images_of_splits(entry, known)
        if entry.split in found:
            return found[entry.split]
    # Also where the split is not there: the reader says what is.
    return [sample.image for sample in read_samples(entry)]


def coco_id(image: Path) -> int | None:
    """The COCO id in an image's file name; None where the name is not COCO's."""
    found = _COCO_NAME.fullmatch(image.stem)
    return int(found[1]) if found else None
