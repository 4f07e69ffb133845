"""Reader of Flickr30k Entities (Plummer et al., IJCV 2017): captions whose noun phrases are linked to boxes.

The folder has, for each image, five captions in `Sentences/{id}.txt`, one a line,

    [/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at ...

in which a bracket holds a chain's number, its types and the words of the phrase, and the boxes of the chains in
`Annotations/{id}.xml`: objects with the numbers of their chains as `name`, and `bndbox`, or `scene` or `nobndbox`.
A chain may have several boxes, a box several chains; phrases of chain 0 and of chains without a box are plain text.
`train.txt`, `val.txt` and `test.txt` list the images; these are `flickr30k-images/{id}.jpg`.

Coordinates of boxes count pixels from 1 and include the last pixel; they become 0-based with exclusive x2 and y2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from sam4mllm.data.boxes import check_box
from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.images import known_size_wh, size_mismatch
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.records import check_phrase, shorten
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.data.xml_text import parse_xml
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.utils.garbage import paused_garbage_collection
from sam4mllm.utils.paths import with_start

_SPLITS = ("train", "val", "test")
_OPENING = re.compile(r"\[/EN#([0-9]+)((?:/[^\s/\[\]]+)+)")
_IMAGE_ID = re.compile(r"[0-9]+")


class _Annotation(NamedTuple):
    """The size (width, height) of an image in pixels, and the objects of each of its chains."""

    size_wh: tuple[int, int]
    objects: dict[str, tuple[MaskObject, ...]]


@paused_garbage_collection()
def read(
    row: DatasetRow, *, root: Path, split: str, images: Path | None = None, limit: int | None = None
) -> list[Sample]:
    """Read a sample for each noun phrase with boxes, in the order of the split's file, the captions and their words.

    Ids are `flickr30k/{split}/{image}/{caption}/{mention}`, counted from 0.

    Raises:
        DataError: As `captions`.
    """
    samples: list[Sample] = []
    for caption in _captions(row, root, split, images):
        for number, mention in enumerate(caption.mentions):
            phrase, source = caption.phrase(mention), caption.source
            samples.append(
                Sample(f"{caption.id}/{number}", caption.image, caption.size_wh, phrase, mention.objects, source=source)
            )
            if len(samples) == limit:
                return samples
    return samples


@paused_garbage_collection()
def captions(
    row: DatasetRow, *, root: Path, split: str, images: Path | None = None, limit: int | None = None
) -> list[GroundedCaption]:
    """Read the captions of a split, also those without a box, in the order of the split's file.

    Ids are `flickr30k/{split}/{image}/{caption}`, counted from 0.

    Args:
        row: The data set's row of the table.
        root: The folder that holds `flickr30k_entities`.
        split: train, val or test.
        images: The folder of the images; None for `flickr30k_entities/flickr30k-images`.
        limit: The maximum number of captions, from the beginning.

    Raises:
        DataError: No such split; a file that is missing or malformed; a box that has no area, or leaves its image; an
            image of another size than annotated. An image that is missing is not an error here.
    """
    found = []
    for caption in _captions(row, root, split, images):
        found.append(caption)
        if len(found) == limit:
            break
    return found


def splits(row: DatasetRow, *, root: Path, images: Path | None = None) -> set[str]:
    """Return the names of the splits whose files exist.

    Raises:
        DataError: None does.
    """
    folder = row.folder_in(root)
    found = {split for split in _SPLITS if (folder / f"{split}.txt").is_file()}
    if not found:
        raise DataError(
            f"{with_start(folder / 'train.txt')}: no such file, nor val.txt or test.txt; the lists of the splits' "
            "images were expected there"
        )
    return found


def images_by_split(row: DatasetRow, *, root: Path, images: Path | None = None) -> dict[str, list[Path]]:
    """Return the images of every split.

    Raises:
        DataError: A split's file is malformed, or there is none.
    """
    return {
        split: [_image(row, root, images, image_id) for image_id in _image_ids(row, root, split)]
        for split in sorted(splits(row, root=root))
    }


def _read_text(path: Path, what: str) -> str:
    if not path.is_file():
        raise DataError(f"{with_start(path)}: no such file; {what} was expected there")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {what} must be UTF-8: {error}; download it again", "field") from error


def _image(row: DatasetRow, root: Path, images: Path | None, image_id: str) -> Path:
    return (row.folder_in(root) / "flickr30k-images" if images is None else images) / f"{image_id}.jpg"


def _image_ids(row: DatasetRow, root: Path, split: str) -> list[str]:
    existing = splits(row, root=root)
    if split not in existing:
        raise DataError(f"{row.folder_in(root)}: no split {split!r}; it has: {', '.join(sorted(existing))}")
    path = row.folder_in(root) / f"{split}.txt"
    image_ids = _read_text(path, "the list of a split's images").split()
    for number, image_id in enumerate(image_ids, 1):
        if not _IMAGE_ID.fullmatch(image_id):
            raise DataError(f"{path}: image {number} is not a number; found {shorten(image_id)}")
    if not image_ids:
        raise DataError(f"{path}: no image in it; a line is the number of an image")
    return image_ids


def _captions(row: DatasetRow, root: Path, split: str, images: Path | None) -> Iterator[GroundedCaption]:
    folder = row.folder_in(root)
    for image_id in _image_ids(row, root, split):
        path = folder / "Sentences" / f"{image_id}.txt"
        with record_errors():
            image = _image(row, root, images, image_id)
            annotation = _read_annotation(folder / "Annotations" / f"{image_id}.xml", image)
            lines = _read_text(path, "a file of an image's captions").splitlines()
            yield from _captions_of_image(lines, f"flickr30k/{split}/{image_id}", image, annotation, path)


def _captions_of_image(
    lines: list[str], beginning: str, image: Path, annotation: _Annotation, path: Path
) -> Iterator[GroundedCaption]:
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        source = f"{path}, line {index + 1}"
        with record_errors(), naming(source):
            text, phrases = _parse_caption(line)
            check_phrase(text, "the caption")
            mentions = tuple(
                Mention(start, end, annotation.objects[chain])
                for start, end, chain in phrases
                if chain in annotation.objects
            )
            yield GroundedCaption(f"{beginning}/{index}", image, annotation.size_wh, text, mentions, source)


def _parse_caption(line: str) -> tuple[str, list[tuple[int, int, str]]]:
    """Return a caption's words with single spaces, and (start, end, chain) of its phrases in that text.

    Raises:
        DataError: A bracket that is no annotation or is not closed, or a phrase without words.
    """
    words: list[str] = []
    phrases: list[tuple[int, int, str]] = []
    length, start, chain = 0, 0, None
    for token in line.split():
        if token.startswith("["):
            match = _OPENING.fullmatch(token)
            if match is None or chain is not None:
                raise DataError(
                    f"a phrase is [/EN#chain/type words], without another one in it; found {shorten(token)}", "field"
                )
            chain, start = match[1], length + bool(words)
            continue
        word = token.removesuffix("]") if chain is not None else token
        if word:
            length += len(word) + bool(words)
            words.append(word)
        if chain is not None and token.endswith("]"):
            if length <= start:
                raise DataError(f"the phrase of chain {chain} has no words", "field")
            phrases.append((start, length, chain))
            chain = None
    if chain is not None:
        raise DataError(f"the phrase of chain {chain} is not closed by ]; found {shorten(line)}", "field")
    return " ".join(words), phrases


def _read_annotation(path: Path, image: Path) -> _Annotation:
    """Read the boxes of an image; only chains with a box have objects.

    Raises:
        DataError: No such file; not XML of this form; boxes or a size that do not fit the image.
    """
    tree = parse_xml(_read_text(path, "a file of an image's boxes"), str(path))
    with naming(str(path)):
        size_wh = _integer(tree, "size/width"), _integer(tree, "size/height")
        on_disk = known_size_wh(image)
        if on_disk is not None and on_disk != size_wh:
            raise DataError(f"annotated at {size_mismatch(image, size_wh, on_disk)}", "image")
        objects: dict[str, tuple[MaskObject, ...]] = {}
        for index, element in enumerate(tree.findall("object")):
            with naming(f"object {index}"):
                chains = [name.text or "" for name in element.findall("name")]
                if not chains or not all(map(_IMAGE_ID.fullmatch, chains)):
                    raise DataError(f"an object has a name, the number of its chain; found {shorten(chains)}", "field")
                if element.find("bndbox") is None:
                    continue
                item = MaskObject(f"flickr30k/{path.stem}/{index}", None, _box(element))
                check_box(item.box, size_wh)
            for chain in dict.fromkeys(chains):
                objects[chain] = (*objects.get(chain, ()), item)
    return _Annotation(size_wh, objects)


def _box(element: Element) -> Box:
    """Return a box in pixels from 0, x2 and y2 exclusive; the file's begin with 1 and include the last pixel."""
    x1, y1, x2, y2 = (_integer(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    if x1 > x2 or y1 > y2:
        raise DataError(f"a bndbox has xmin <= xmax and ymin <= ymax; found {[x1, y1, x2, y2]}", "box")
    return Box(x1 - 1, y1 - 1, x2, y2)


def _integer(element: Element, name: str) -> int:
    text = element.findtext(name)
    if text is None or not re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII):
        raise DataError(f"the field {name!r} must be an integer; found {shorten(text)}", "field")
    return int(text)
