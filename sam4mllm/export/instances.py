"""The masks of a file of predictions, grouped by image: what every format is written from.

Answers that are malformed, and queries with the status "error", have no masks and are counted; a phrase to which the
model answered that there is no object is kept without objects. A mask without a pixel is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam4mllm.data.images import known_size_wh, size_mismatch
from sam4mllm.data.masks import Rle, tight_box
from sam4mllm.data.predictions import PredictedObject, read_predictions
from sam4mllm.errors import PredictionsError
from sam4mllm.geometry import Box


@dataclass(frozen=True, slots=True)
class Instance:
    """One mask of a phrase: its RLE at the image's size, tight box in pixels, and score from 0 to 1 or None."""

    rle: Rle
    box: Box
    score: float | None


@dataclass(frozen=True, slots=True)
class PhraseInstances:
    """The answer to one phrase. `no_object`: the model answered that the image has no such object."""

    id: str
    phrase: str
    instances: tuple[Instance, ...]
    no_object: bool


@dataclass(frozen=True, slots=True)
class ImageInstances:
    """An image file with the answers to its phrases, in the order of the predictions."""

    path: Path
    size_wh: tuple[int, int]
    phrases: tuple[PhraseInstances, ...]


@dataclass(slots=True)
class ExportCounts:
    """What was exported and what was left out.

    images, phrases, instances: written ones; phrases without an object are among the phrases.
    unanswered: lines of the status "malformed" or "error".
    below: objects whose score is below the threshold.
    empty: objects whose mask has no pixel.
    """

    images: int = 0
    phrases: int = 0
    instances: int = 0
    unanswered: int = 0
    below: int = 0
    empty: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _OpenImage:
    size_wh: tuple[int, int] | None = None
    phrases: list[PhraseInstances] = field(default_factory=list)


def read_instances(path: Path, min_score: float | None = None) -> tuple[list[ImageInstances], ExportCounts]:
    """Read a predictions.jsonl; images have the order of their first line.

    Args:
        path: The file of predictions, by this program or any other.
        min_score: Objects with a lower score are left out; None keeps all, and those without a score.

    Raises:
        PredictionsError: No such file, or bad lines; a line without image or phrase; an object without a score where
            `min_score` is given; masks of two sizes on one image; an image whose size is unknown: it has no mask, and
            there is no file of it; an image at a URL.
    """
    counts = ExportCounts()
    images: dict[Path, _OpenImage] = {}
    for line in read_predictions(path):
        if line.status in ("malformed", "error"):
            counts.unanswered += 1
            continue
        if line.image is None or line.phrase is None:
            missing = "image" if line.image is None else "phrase"
            raise PredictionsError(f"{path}: the line of {line.id!r} has no field {missing!r}, which an export needs")
        where = f"{path}: {line.id!r}"
        if not isinstance(line.image, Path):
            raise PredictionsError(f"{where}: its image is at {line.image}; only local images can be exported")
        image = images.setdefault(line.image, _OpenImage())
        kept = [each for item in line.objects if (each := _instance(item, min_score, where, counts)) is not None]
        for item in line.objects:
            height, width = item.segmentation["size"]
            if image.size_wh not in (None, (width, height)):
                raise PredictionsError(
                    f"{where}: masks of the sizes {image.size_wh} and {(width, height)} on one image"
                )
            image.size_wh = width, height
        image.phrases.append(PhraseInstances(line.id, line.phrase, tuple(kept), line.status == "no_object"))
    found = [_checked(file, image, path) for file, image in images.items()]
    counts.images = len(found)
    counts.phrases = sum(len(image.phrases) for image in found)
    counts.instances = sum(len(phrase.instances) for image in found for phrase in image.phrases)
    return found, counts


def phrases_of(images: Iterable[ImageInstances]) -> list[str]:
    """Return the different phrases with an object, in the order of their first one: the categories of a file."""
    return list(dict.fromkeys(each.phrase for image in images for each in image.phrases if each.instances))


def unique_names(images: Iterable[ImageInstances]) -> list[Path]:
    """Return a relative path for each image: from the folder that holds all of them, with a suffix.

    Raises:
        PredictionsError: Two images have paths that differ in their suffix alone, so that their labels would have one
            name.
    """
    paths = [image.path.absolute() for image in images]
    common = min((path.parent for path in paths), key=lambda folder: len(folder.parts), default=Path())
    while not all(path.is_relative_to(common) for path in paths):
        common = common.parent
    names = [path.relative_to(common) for path in paths]
    stem, count = next(iter(Counter(name.with_suffix("") for name in names).most_common(1)), (None, 0))
    if count > 1:
        raise PredictionsError(f"{count} images are called {stem} and differ in the suffix alone; rename one of them")
    return names


def _instance(item: PredictedObject, min_score: float | None, where: str, counts: ExportCounts) -> Instance | None:
    """Return an object's instance, or None, counted, if it is below the threshold or has no pixel."""
    if min_score is not None:
        if item.score is None:
            raise PredictionsError(f"{where}: an object has no score; leave --min-score out")
        if item.score < min_score:
            counts.below += 1
            return None
    box = tight_box(item.segmentation)
    if box is None:
        counts.empty += 1
        return None
    return Instance(item.segmentation, box, item.score)


def _checked(file: Path, image: _OpenImage, predictions: Path) -> ImageInstances:
    """Return an image whose size is known, from its masks or from its file, which agree where both exist."""
    on_disk = known_size_wh(file)
    size_wh = image.size_wh or on_disk
    if size_wh is None:
        raise PredictionsError(f"{predictions}: {file} has no mask, so its size is unknown, and no image is there")
    if on_disk is not None and on_disk != size_wh:
        raise PredictionsError(f"{predictions}: masks of the size {size_mismatch(file, size_wh, on_disk)}")
    return ImageInstances(file, size_wh, tuple(image.phrases))
