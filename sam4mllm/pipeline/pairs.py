"""(image, phrase) pairs as a pipeline's argument: checked, and grouped by image so that each image is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sam4mllm.data.images import ImageInput, Rgb, as_rgb, image_key
from sam4mllm.pipeline.result import Result

ImagesAnswer = Callable[[Sequence[Rgb], Sequence[tuple[int, str]]], list[Result]]
"""A function that answers (index of the image, phrase) pairs about images, as `Pipeline.answer` does."""


def answer_pairs(pairs: Sequence[tuple[ImageInput, str]], image_batch: int, answer: ImagesAnswer) -> list[Result]:
    """Return the results of (image, phrase) pairs in their order, from calls of `answer` for `image_batch` images.

    Raises:
        DataError: An image cannot be read.
    """
    by_image: dict[object, list[int]] = {}
    for index, (image, _) in enumerate(pairs):
        by_image.setdefault(image_key(image), []).append(index)
    results: dict[int, Result] = {}
    for group in batched(list(by_image.values()), image_batch):
        images = [as_rgb(pairs[indices[0]][0]) for indices in group]
        members = [(number, index) for number, indices in enumerate(group) for index in indices]
        answers = answer(images, [(number, pairs[index][1]) for number, index in members])
        results.update(zip((index for _, index in members), answers, strict=True))
    return [results[index] for index in range(len(pairs))]


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield batches of `size` items; the last may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def check_pairs(value: Any) -> list[tuple[ImageInput, str]]:
    """Return the (image, phrase) pairs of a list or another iterable.

    Raises:
        TypeError: It is no iterable of pairs.
    """
    expected = "a pipeline takes (image, phrase), or a list of such pairs"
    if not isinstance(value, Iterable) or isinstance(value, str | bytes) or hasattr(value, "shape"):
        raise TypeError(f"{expected}; got one {type(value).__name__} and no phrase")
    pairs = list(value)
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
            raise TypeError(f"{expected}; item {index} is {pair!r:.80}")
    return [(image, phrase) for image, phrase in pairs]
