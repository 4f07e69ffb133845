"""The silhouettes of the generated shapes: outlines in a unit frame, y downwards, with a radius of about 1.

A silhouette is a list of loops, painted or cut out in order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]


class Loop(NamedTuple):
    """A closed outline (N, 2) of (x, y) in the unit frame; `filled` is whether it is painted or cut out."""

    outline: Outline
    filled: bool


def _arc(
    radius: float, start: float = 0.0, stop: float = 2 * np.pi, centre: tuple[float, float] = (0.0, 0.0)
) -> Outline:
    angles = np.linspace(start, stop, 48)
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _regular(corners: int, radius: float = 1.0, first: float = -np.pi / 2) -> Outline:
    angles = first + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle() -> list[Loop]:
    return [Loop(_arc(0.9), True)]


def _square() -> list[Loop]:
    return [Loop(0.8 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float), True)]


def _triangle() -> list[Loop]:
    return [Loop(_regular(3, 1.1) + np.array([0, 0.2]), True)]


def _diamond() -> list[Loop]:
    return [Loop(np.array([[0, -1.1], [0.68, 0], [0, 1.1], [-0.68, 0]]), True)]


def _ring() -> list[Loop]:
    return [Loop(_arc(1.0), True), Loop(_arc(0.55), False)]


def _frame() -> list[Loop]:
    side = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    return [Loop(0.85 * side, True), Loop(0.47 * side, False)]


def _crescent() -> list[Loop]:
    return [Loop(_arc(1.0), True), Loop(_arc(0.85, centre=(0.48, 0.0)), False)]


def _star() -> list[Loop]:
    outline = np.empty((10, 2))
    outline[0::2] = _regular(5, 1.1)
    outline[1::2] = _regular(5, 0.46, first=-np.pi / 2 + np.pi / 5)
    return [Loop(outline, True)]


def _cross() -> list[Loop]:
    a, b = 1.0, 0.33
    corners = [
        (-b, -a),
        (b, -a),
        (b, -b),
        (a, -b),
        (a, b),
        (b, b),
        (b, a),
        (-b, a),
        (-b, b),
        (-a, b),
        (-a, -b),
        (-b, -b),
    ]
    return [Loop(np.array(corners), True)]


def _arrow() -> list[Loop]:
    corners = [(-1.1, -0.27), (0.1, -0.27), (0.1, -0.8), (1.1, 0.0), (0.1, 0.8), (0.1, 0.27), (-1.1, 0.27)]
    return [Loop(np.array(corners), True)]


def _heart() -> list[Loop]:
    t = np.linspace(0, 2 * np.pi, 64)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [Loop(np.stack([x, y + 2], axis=1) / 16.0, True)]


def _letter_c() -> list[Loop]:
    wedge = np.array([[0, 0], [2, -1.5], [2, 1.5]], dtype=float)
    return [Loop(_arc(1.0), True), Loop(_arc(0.52), False), Loop(wedge, False)]


_MAKERS: dict[str, Callable[[], list[Loop]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "ring": _ring,
    "frame": _frame,
    "crescent": _crescent,
    "star": _star,
    "cross": _cross,
    "arrow": _arrow,
    "heart": _heart,
    "C": _letter_c,
}

SILHOUETTES: tuple[str, ...] = tuple(_MAKERS)

# Shapes that are rotated by any angle. The others are only tilted: a square on its corner is a diamond.
TURNS_FREELY = frozenset({"arrow", "crescent", "C", "circle", "ring"})


@functools.cache
def loops(name: str) -> tuple[Loop, ...]:
    """Return the loops of the silhouette `name`."""
    return tuple(_MAKERS[name]())
