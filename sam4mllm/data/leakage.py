"""The leakage guard: which pictures of a mixture are pictures that something is evaluated on.

RefCOCO, RefCOCO+ and RefCOCOg divide one pool of pictures in different ways, so one's training split holds another's
test pictures. Two pictures are the same when they are one file, when their names hold the same COCO id, or, where names
cannot tell (not both are COCO's), when their files hold the same bytes. Generated pictures have COCO's names, but are
not COCO's. Only files of equal length are hashed, so the guard costs little more than a look at the folders. A picture
that was encoded anew under another name is not found. This module does not know what is said about a picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sam4mllm.data.readers import KnownPictures, pictures_of_splits, read_dialogues, read_samples
from sam4mllm.data.shapes.marker import is_generated
from sam4mllm.digests import file_sha256
from sam4mllm.recipe_data import CHAT_SETS, DataEntry, DataSection

Reason = Literal["file", "coco id", "content"]

# COCO's own names: COCO_train2014_000000123456.jpg, and since 2017 000000123456.jpg. An id is one picture in all years.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")


@dataclass(slots=True)
class LeftOut:
    """What the guard took out of one set: how many phrases or chats, and the pictures that they were about and why."""

    name: str
    phrases: int = 0
    pictures: dict[Path, Reason] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For leakage.json: counts alone."""
        reasons = list(self.pictures.values())
        by = {reason: reasons.count(reason) for reason in ("file", "coco id", "content")}
        return {"set": self.name, "phrases": self.phrases, "pictures": len(self.pictures), "by": by}

    def __str__(self) -> str:
        return f"{self.name}: {self.phrases} phrases about {len(self.pictures)} pictures left out"


class Guard:
    """Tells of a picture whether it is among the guarded ones. `splits` are the guarded pictures by their split."""

    def __init__(self, splits: Mapping[str, Sequence[Path]]) -> None:
        self.pictures = {name: len(set(pictures)) for name, pictures in splits.items()}
        self._files = {picture for pictures in splits.values() for picture in pictures}
        self._generated: dict[Path, bool] = {}
        self._coco_ids = {self._coco_id(picture) for picture in self._files} - {None}
        self._told: dict[Path, Reason | None] = {}
        self._lengths: dict[int, list[Path]] | None = None
        self._hashes: dict[Path, str] = {}

    def reason(self, picture: Path) -> Reason | None:
        """Why the picture counts as a guarded one; None where it does not."""
        if picture not in self._told:
            self._told[picture] = self._find(picture)
        return self._told[picture]

    def _find(self, picture: Path) -> Reason | None:
        if picture in self._files:
            return "file"
        identity = self._coco_id(picture)
        if identity in self._coco_ids:
            return "coco id"
        if self._lengths is None:
            self._lengths = {}
            for guarded in self._files:
                if guarded.is_file():
                    self._lengths.setdefault(guarded.stat().st_size, []).append(guarded)
        # A picture that is not on disk has no content to compare; whoever needs it says that it is missing.
        alike = self._lengths.get(picture.stat().st_size, []) if self._lengths and picture.is_file() else []
        unnamed = [guarded for guarded in alike if identity is None or self._coco_id(guarded) is None]
        return "content" if any(self._hash(guarded) == self._hash(picture) for guarded in unnamed) else None

    def _coco_id(self, picture: Path) -> int | None:
        """The COCO id in a picture's name; None also for a picture below a folder of generated data."""
        folder = picture.parent
        if folder not in self._generated:
            above = folder.absolute()
            self._generated[folder] = any(is_generated(each) for each in (above, *above.parents))
        return None if self._generated[folder] else coco_id(picture)

    def _hash(self, picture: Path) -> str:
        """SHA-256 of the file's bytes."""
        if picture not in self._hashes:
            self._hashes[picture] = file_sha256(picture)
        return self._hashes[picture]


def guard_of(data: DataSection, known: KnownPictures | None = None) -> Guard:
    """The guard of a recipe: the splits that it lists, or those that it has by default; empty where it is off.

    `known` are the pictures of sets that were parsed already, as for `pictures_of_splits`.

    By default these are `validation` and every split but train, under their roots, of the data sets in the mixture and
    in `validation`. A split that the recipe itself trains on is not guarded. `validation` is guarded beside a list as
    well, and all of it, however few of its samples are used.

    Raises:
        DataError: a data set cannot be read.
    """
    if data.guard == []:
        return Guard({})
    known = {} if known is None else known
    splits: dict[str, list[Path]] = {}
    if data.validation is not None:
        splits[data.validation.name] = _pictures_of(data.validation.model_copy(update={"limit": None}), known)
    if data.guard is not None:
        for entry in data.guard:
            splits[entry.name] = [*splits.get(entry.name, ()), *_pictures_of(entry, known)]
        return Guard(splits)
    trained = {(entry.root, _folder_name(entry), entry.split) for entry in data.train}
    looked_at = set()
    for entry in [*data.train, *([data.validation] if data.validation is not None else [])]:
        place = entry.root, _folder_name(entry), entry.split_by
        if entry.root is None or place in looked_at:
            continue
        looked_at.add(place)
        for split, pictures in pictures_of_splits(entry, known).items():
            if split != "train" and (entry.root, _folder_name(entry), split) not in trained:
                name = f"{_folder_name(entry)} {split}"
                splits[name] = [*splits.get(name, ()), *pictures]
    return Guard(splits)


def _folder_name(entry: DataEntry) -> str:
    """The data set whose splits an entry belongs to: the explanations are ReasonSeg's."""
    return "reasonseg" if entry.dataset == "reasonseg-explanations" else entry.dataset


def _pictures_of(entry: DataEntry, known: KnownPictures) -> list[Path]:
    if entry.dataset in CHAT_SETS:
        return [dialogue.image for dialogue in read_dialogues(entry)]
    if entry.root is not None and entry.limit is None:
        found = pictures_of_splits(entry, known)
        if entry.split in found:
            return found[entry.split]
    # Also where the split is not there: the reader says what is.
    return [sample.image for sample in read_samples(entry)]


def coco_id(picture: Path) -> int | None:
    """The COCO id in a picture's file name; None where the name is not COCO's."""
    found = _COCO_NAME.fullmatch(picture.stem)
    return int(found[1]) if found else None
