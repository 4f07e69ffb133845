"""Finds the shapes of a phrase from its words and the masks alone, independently of the generator."""

from __future__ import annotations

import re

import numpy as np

from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.scenes import COLOURS, PATTERNS, Scene
from sam4mllm.synthetic.silhouettes import SILHOUETTES

RELATION = re.compile(r"(.+?) (?:to the )?(left of|right of|above|over|below|under) the (.+)")
OVERLAP = re.compile(r"(?:the )?(.+?)(?: is)? (on|around|in front of|behind) the (.+)")
# Words for an order -> axis, and whether the shape with the largest coordinate is described.
ENDS = {
    "left": (0, False), "leftmost": (0, False), "right": (0, True), "rightmost": (0, True),
    "top": (1, False), "topmost": (1, False), "bottom": (1, True), "lowest": (1, True),
}  # fmt: skip
SIDES = {
    "left of": (0, False), "right of": (0, True), "above": (1, False), "over": (1, False), "below": (1, True),
    "under": (1, True),
}  # fmt: skip
SIZES = {"largest": True, "biggest": True, "smallest": False, "tiniest": False}
# Prepositions of shapes that share a box -> whether the described shape is in front of the other one.
LAYERS = {"on": True, "around": True, "in front of": True, "behind": False}
ENCLOSING = {"ring", "frame", "C"}
CLUES = {clue: name for name, clues in KNOWN_FOR.items() for clue in clues}


def matching(scene: Scene, words: str) -> set[int]:
    """Return the shapes that match a noun phrase such as "striped red ring", or its plural."""
    *before, head = words.split(" ")
    kept = set(range(len(scene.shapes)))
    name = {"crosses": "cross", "shapes": "shape"}.get(head, head if head in SILHOUETTES else head.removesuffix("s"))
    if name != "shape":
        assert name in SILHOUETTES, words
        kept &= {i for i, shape in enumerate(scene.shapes) if shape.name == name}
    for word in before:
        assert word in COLOURS or word in PATTERNS, words
        kept &= {i for i, shape in enumerate(scene.shapes) if word in (shape.colour, shape.pattern)}
    return kept


def shapes_of(scene: Scene, text: str, kind: str) -> set[int]:
    """Return the shapes that a phrase of `kind` is true of; AssertionError if it is true by a small margin only."""
    if kind in ("attribute", "plural"):
        return matching(scene, re.sub(r"^(all the |all |the )", "", text))
    if kind == "nothing":
        noun = text.removeprefix("the ")
        if OVERLAP.fullmatch(noun):
            return _overlapping(scene, noun)
        relation = RELATION.fullmatch(noun)
        if relation is None or not matching(scene, relation[1]):
            return matching(scene, relation[1] if relation else noun)
        return _beside(scene, text)
    if kind == "overlap":
        return _overlapping(scene, text)
    if kind == "pair":
        first, second = re.fullmatch(r"the (.+) and the (.+)", text).groups()  # type: ignore[union-attr]
        return _only(matching(scene, first)) | _only(matching(scene, second))
    if kind == "reasoning":
        clue, _, colour = text.partition(", in ") if text not in CLUES else (text, "", "")
        return {i for i in matching(scene, CLUES[clue]) if colour in ("", scene.shapes[i].colour)}
    if kind == "superlative":
        word, noun = re.fullmatch(r"the (\w+) (.+)", text).groups()  # type: ignore[union-attr]
        areas = {i: _area(scene, i) for i in matching(scene, noun)}
        ordered = sorted(areas, key=lambda i: areas[i], reverse=SIZES[word])
        ratio = areas[ordered[0]] / areas[ordered[1]]
        assert max(ratio, 1 / ratio) >= 1.35, text
        return {ordered[0]}
    if kind == "position":
        match = re.fullmatch(r"the (\w+most|lowest) (?P<noun>.+)", text)
        match = match or re.fullmatch(r"the (?P<noun>.+) (?:on|at) the (\w+)", text)
        assert match is not None, text
        end = next(word for word in match.groups() if word != match["noun"])
        axis, last = ENDS[end]
        positions = {i: _centre(scene, i)[axis] for i in matching(scene, match["noun"])}
        ordered = sorted(positions, key=lambda i: positions[i], reverse=last)
        assert abs(positions[ordered[0]] - positions[ordered[1]]) >= 0.1 * scene.size_wh[axis], text
        return {ordered[0]}
    assert kind == "relation", kind
    return _beside(scene, text)


def _beside(scene: Scene, text: str) -> set[int]:
    """Return the shapes on the described side of the landmark, by a margin that is clear for all, or for those."""
    noun, side, landmark = RELATION.fullmatch(text.removeprefix("the ")).groups()  # type: ignore[union-attr]
    (anchor,) = _only(matching(scene, landmark))
    axis, beyond = SIDES[side]
    ahead = {i: _centre(scene, i)[axis] - _centre(scene, anchor)[axis] for i in matching(scene, noun) - {anchor}}
    true = {i for i, distance in ahead.items() if (distance > 0 if beyond else distance < 0)}
    assert all(abs(ahead[i]) >= 0.1 * scene.size_wh[axis] for i in true or ahead), text
    return true


def _overlapping(scene: Scene, text: str) -> set[int]:
    """Return the shapes that share the landmark's box on the described side; none may nearly share it.

    A shape shares a box if the intersection is at least half of the union, and is clearly apart up to a fifth.
    """
    noun, word, landmark = OVERLAP.fullmatch(text).groups()  # type: ignore[union-attr]
    (anchor,) = _only(matching(scene, landmark))
    described = set(range(len(scene.shapes))) if noun == "what" else matching(scene, noun)
    shares = {i: _overlap(scene, i, anchor) for i in described - {anchor}}
    assert all(share >= 0.5 or share <= 0.2 for share in shares.values()), text
    found = {i for i, share in shares.items() if share >= 0.5 and (i > anchor) == LAYERS[word]}
    if word == "around":
        assert {scene.shapes[i].name for i in found} <= ENCLOSING, text
    return found


def _only(shapes: set[int]) -> set[int]:
    assert len(shapes) == 1, "the words must match one shape"
    return shapes


def _sides(scene: Scene, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The extent of a mask's pixels along x and y, each (first, one past the last)."""
    rows, columns = np.nonzero(scene.shapes[index].mask)
    return (int(columns.min()), int(columns.max()) + 1), (int(rows.min()), int(rows.max()) + 1)


def _overlap(scene: Scene, index: int, other: int) -> float:
    """The intersection of two boxes over their union."""
    along = zip(_sides(scene, index), _sides(scene, other), strict=True)
    width, height = (max(0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in along)
    return width * height / (_area(scene, index) + _area(scene, other) - width * height)


def _centre(scene: Scene, index: int) -> tuple[float, float]:
    (x1, x2), (y1, y2) = _sides(scene, index)
    return (x1 + x2) / 2, (y1 + y2) / 2


def _area(scene: Scene, index: int) -> int:
    (x1, x2), (y1, y2) = _sides(scene, index)
    return (x2 - x1) * (y2 - y1)
