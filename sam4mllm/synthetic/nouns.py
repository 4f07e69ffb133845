"""Noun phrases for the shapes of a scene, such as "striped red ring", with the shapes that match them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sam4mllm.synthetic.scenes import Scene, Shape

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun phrase such as "red ring", and the shapes of the scene that match it."""

    words: str
    shapes: tuple[int, ...]


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """Return one of the options, each with equal probability."""
    return options[int(rng.integers(len(options)))]


def _noun_words(name: str | None, colour: str | None, pattern: str | None, plural: bool) -> str:
    words = [word for word in (pattern, colour) if word]
    head = name or "shape"
    if plural:
        head = {"cross": "crosses", "C": "Cs"}.get(head, head + "s")
    return " ".join([*words, head])


def _matches(shape: Shape, name: str | None, colour: str | None, pattern: str | None) -> bool:
    return (name in (None, shape.name)) and (colour in (None, shape.colour)) and (pattern in (None, shape.pattern))


def noun_for(scene: Scene, rng: np.random.Generator, index: int, plural: bool = False) -> Noun:
    """Return a random noun phrase that matches the shape `index`, and possibly others."""
    shape = scene.shapes[index]
    form = rng.choice(6, p=[0.30, 0.38, 0.12, 0.06, 0.06, 0.08])
    name = shape.name if form in (0, 1, 2, 5) else None
    colour = shape.colour if form in (1, 3, 5) else None
    pattern = shape.pattern if form in (2, 4, 5) else None
    return noun_of(scene, name, colour, pattern, plural)


def noun_of(scene: Scene, name: str | None, colour: str | None, pattern: str | None, plural: bool = False) -> Noun:
    """Return the noun phrase with the given words, where None leaves one out, and the shapes that match it."""
    matching = tuple(i for i, shape in enumerate(scene.shapes) if _matches(shape, name, colour, pattern))
    return Noun(_noun_words(name, colour, pattern, plural), matching)


def any_index(scene: Scene, rng: np.random.Generator) -> int:
    """Return the index of a random shape."""
    return int(rng.integers(len(scene.shapes)))


def unique_noun(scene: Scene, rng: np.random.Generator, index: int) -> Noun | None:
    """Return a noun phrase that matches the shape `index` and no other; None if six attempts find none."""
    for _ in range(6):
        noun = noun_for(scene, rng, index)
        if len(noun.shapes) == 1:
            return noun
    return None
