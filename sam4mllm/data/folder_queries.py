"""Queries about a folder of images: each phrase about each image, without a file of queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sam4mllm.data.images import IMAGE_SUFFIXES
from sam4mllm.data.predictions import Query
from sam4mllm.data.records import check_not_empty, check_phrase
from sam4mllm.errors import DataError


def images_of(folder: Path) -> list[Path]:
    """Return the images of a folder by their suffixes, sorted, without those of its subfolders."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def queries_about(images: Sequence[Path], phrases: Sequence[str]) -> list[Query]:
    """Return a query for each phrase about each image; its id is the file's name and the number of the phrase.

    >>> queries_about([Path("photos/a.jpg")], ["the car"])
    [Query(id='a.jpg/1', image=PosixPath('photos/a.jpg'), phrase='the car')]
    """
    return [
        Query(f"{path.name}/{number}", path, phrase)
        for path in images
        for number, phrase in enumerate(phrases, start=1)
    ]


def folder_queries(folder: Path, phrases: Sequence[str]) -> list[Query]:
    """Return a query for each phrase about each image of a folder.

    Raises:
        DataError: There is no image in the folder; a phrase is empty, not UTF-8 or too long.
    """
    for phrase in phrases:
        check_phrase(check_not_empty(phrase, "--phrase"), "--phrase")
    images = images_of(folder)
    if not images:
        raise DataError(f"{folder}: no image in it (suffixes: {', '.join(IMAGE_SUFFIXES)})")
    return queries_about(images, phrases)
