"""Referring expressions for a scene: phrases of nine kinds, each with the shapes that it refers to.

A phrase is true of its shapes by a clear margin and of no other shape; near ties are never described. Phrases of the
kind "overlap" ("the ring around the star") need two shapes that share a box. `Phrase.spans` maps words to shapes (also
the landmark of a relation), for the scripts that build the toy models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.scenes import COLOURS, Scene, Shape
from sam4mllm.synthetic.silhouettes import SILHOUETTES


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase about a scene, with the indexes of its shapes, and the spans (start, end, shapes) of its nouns."""

    text: str
    kind: str
    shapes: tuple[int, ...]
    spans: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class _Noun:
    """A noun phrase such as "red ring", and the shapes of the scene that match it."""

    words: str
    shapes: tuple[int, ...]


_T = TypeVar("_T")
_Piece = str | _Noun
_CLEAR_SHARE = 0.12  # of the image's side: how far apart centres must be for "left of", "above"
_CLEAR_RATIO = 1.5  # of the area: how much larger "the largest" must be than the next
# Shapes share a box above the first IoU of their boxes, and are clearly apart below the second one.
_SHARED_IOU, _APART_IOU = 0.5, 0.2


def phrases_of(scene: Scene, rng: np.random.Generator, kind: str, tries: int = 12) -> Phrase | None:
    """Return a random phrase of `kind` about the scene; None if `tries` attempts find none."""
    for _ in range(tries):
        phrase = _MAKERS[kind](scene, rng)
        if phrase is not None:
            return phrase
    return None


def _phrase(kind: str, shapes: Sequence[int], *pieces: _Piece) -> Phrase:
    text, spans = "", []
    for piece in pieces:
        words = piece.words if isinstance(piece, _Noun) else piece
        if isinstance(piece, _Noun):
            spans.append((len(text), len(text) + len(words), piece.shapes))
        text += words
    return Phrase(text, kind, tuple(sorted(shapes)), tuple(spans))


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _noun_words(name: str | None, colour: str | None, pattern: str | None, plural: bool) -> str:
    words = [word for word in (pattern, colour) if word]
    head = name or "shape"
    if plural:
        head = {"cross": "crosses", "C": "Cs"}.get(head, head + "s")
    return " ".join([*words, head])


def _matches(shape: Shape, name: str | None, colour: str | None, pattern: str | None) -> bool:
    return (name in (None, shape.name)) and (colour in (None, shape.colour)) and (pattern in (None, shape.pattern))


def _noun_for(scene: Scene, rng: np.random.Generator, index: int, plural: bool = False) -> _Noun:
    """Return a random noun phrase that matches the shape `index`, and possibly others."""
    shape = scene.shapes[index]
    form = rng.choice(6, p=[0.30, 0.38, 0.12, 0.06, 0.06, 0.08])
    name = shape.name if form in (0, 1, 2, 5) else None
    colour = shape.colour if form in (1, 3, 5) else None
    pattern = shape.pattern if form in (2, 4, 5) else None
    return _noun(scene, name, colour, pattern, plural)


def _noun(scene: Scene, name: str | None, colour: str | None, pattern: str | None, plural: bool = False) -> _Noun:
    matching = tuple(i for i, shape in enumerate(scene.shapes) if _matches(shape, name, colour, pattern))
    return _Noun(_noun_words(name, colour, pattern, plural), matching)


def _any_index(scene: Scene, rng: np.random.Generator) -> int:
    return int(rng.integers(len(scene.shapes)))


def _unique_noun(scene: Scene, rng: np.random.Generator, index: int) -> _Noun | None:
    """Return a noun phrase that matches the shape `index` and no other; None if six attempts find none."""
    for _ in range(6):
        noun = _noun_for(scene, rng, index)
        if len(noun.shapes) == 1:
            return noun
    return None


def _attribute(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = _unique_noun(scene, rng, _any_index(scene, rng))
    return None if noun is None else _phrase("attribute", noun.shapes, _pick(rng, ("the ", "", "the ")), noun)


def _position(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe the first or last shape along an axis, among all shapes or those of a noun."""
    noun = _noun(scene, None, None, None) if rng.random() < 0.4 else _noun_for(scene, rng, _any_index(scene, rng))
    if len(noun.shapes) < 2:
        return None
    axis = int(rng.integers(2))
    ordered = sorted(noun.shapes, key=lambda i: scene.shapes[i].centre_xy[axis])
    first = bool(rng.integers(2))
    best, next_best = (ordered[0], ordered[1]) if first else (ordered[-1], ordered[-2])
    gap = abs(scene.shapes[best].centre_xy[axis] - scene.shapes[next_best].centre_xy[axis])
    if gap < _CLEAR_SHARE * scene.size_wh[axis]:
        return None
    end = (("left", "right"), ("top", "bottom"))[axis][0 if first else 1]
    if rng.random() < 0.5:
        return _phrase("position", [best], "the ", noun, f" {'on' if axis == 0 else 'at'} the {end}")
    most = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}[end]
    return _phrase("position", [best], f"the {most} ", noun)


def _distance(scene: Scene, index: int, anchor: int, side: str) -> float:
    """Return how far `index` is on that side of `anchor`, relative to the image's size; negative on the other side."""
    axis = 0 if side in ("left", "right") else 1
    distance = scene.shapes[index].centre_xy[axis] - scene.shapes[anchor].centre_xy[axis]
    return (distance if side in ("right", "below") else -distance) / scene.size_wh[axis]


_SIDES: dict[str, tuple[str, ...]] = {
    "left": (" left of ", " to the left of "),
    "right": (" right of ", " to the right of "),
    "above": (" above ", " over "),
    "below": (" below ", " under "),
}


def _relation(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    anchor = _any_index(scene, rng)
    landmark = _unique_noun(scene, rng, anchor)
    target = _any_index(scene, rng)
    if landmark is None or target == anchor:
        return None
    noun = _noun_for(scene, rng, target)
    side = _pick(rng, tuple(_SIDES))
    candidates = [i for i in noun.shapes if i != anchor]
    distances = [_distance(scene, i, anchor, side) for i in candidates]
    targets = [i for i, share in zip(candidates, distances, strict=True) if share >= _CLEAR_SHARE]
    unclear = any(0 < share < _CLEAR_SHARE for share in distances)
    # If the noun matches one shape only, the relation is redundant: such phrases are kept, but are rarer.
    if unclear or len(targets) != 1 or (len(candidates) == 1 and rng.random() < 0.5):
        return None
    return _phrase("relation", targets, "the ", noun, _pick(rng, _SIDES[side]), "the ", landmark)


_ENCLOSING = ("ring", "frame", "C")


def _overlapping(scene: Scene, index: int, in_front: bool) -> tuple[list[int], bool]:
    """Return the shapes in front of (or behind) the shape `index` that share its box, and whether any nearly does."""
    ious = {i: shape.box.iou(scene.shapes[index].box) for i, shape in enumerate(scene.shapes) if i != index}
    sharing = [i for i, iou in ious.items() if iou >= _SHARED_IOU and (i > index) == in_front]
    return sharing, any(_APART_IOU < iou < _SHARED_IOU for iou in ious.values())


def _overlap(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape by the one that shares its box: what is on, around, in front of or behind it."""
    anchor, in_front = _any_index(scene, rng), bool(rng.random() < 0.6)
    sharing, unclear = _overlapping(scene, anchor, in_front)
    landmark = _unique_noun(scene, rng, anchor)
    if not sharing or unclear or landmark is None:
        return None
    where = _pick(rng, (" on the ", " in front of the ")) if in_front else " behind the "
    if len(sharing) == 1 and rng.random() < 0.25:
        return _phrase("overlap", sharing, f"what is{where}", landmark)
    noun = _noun_for(scene, rng, _pick(rng, sharing))
    targets = [i for i in noun.shapes if i in sharing]
    # As for relations, phrases whose noun matches one shape only are rarer.
    if len(targets) != 1 or (len(noun.shapes) == 1 and rng.random() < 0.5):
        return None
    if in_front and scene.shapes[targets[0]].name in _ENCLOSING and rng.random() < 0.5:
        where = " around the "
    return _phrase("overlap", targets, "the ", noun, where, landmark)


def _superlative(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = _noun(scene, None, None, None) if rng.random() < 0.5 else _noun_for(scene, rng, _any_index(scene, rng))
    if len(noun.shapes) < 2:
        return None
    ordered = sorted(noun.shapes, key=lambda i: scene.shapes[i].box.area)
    large = bool(rng.integers(2))
    best, other = (ordered[-1], ordered[-2]) if large else (ordered[0], ordered[1])
    ratio = scene.shapes[best].box.area / scene.shapes[other].box.area
    if max(ratio, 1 / ratio) < _CLEAR_RATIO:
        return None
    word = _pick(rng, ("largest", "biggest") if large else ("smallest", "tiniest"))
    return _phrase("superlative", [best], f"the {word} ", noun)


def _plural(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = _noun_for(scene, rng, _any_index(scene, rng), plural=True)
    if not 2 <= len(noun.shapes) <= 4:
        return None
    return _phrase("plural", noun.shapes, _pick(rng, ("all ", "all the ", "the ")), noun)


def _pair(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    if len(scene.shapes) < 2:
        return None
    first, second = (int(i) for i in rng.choice(len(scene.shapes), 2, replace=False))
    nouns = _unique_noun(scene, rng, first), _unique_noun(scene, rng, second)
    if nouns[0] is None or nouns[1] is None:
        return None
    return _phrase("pair", [first, second], "the ", nouns[0], " and the ", nouns[1])


def _nothing(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape that the scene lacks, mostly with the color of one shape and the silhouette of another.

    Two of five phrases name a shape that exists, but not beside, on or behind the other one as the phrase states.
    """
    form = rng.random()
    if form < 0.2:
        return _nothing_beside(scene, rng)
    if form < 0.4 and any(_overlapping(scene, i, True)[0] for i in range(len(scene.shapes))):
        return _nothing_overlaps(scene, rng)
    mixed = rng.random()
    name: str | None = scene.shapes[_any_index(scene, rng)].name
    colour: str | None = scene.shapes[_any_index(scene, rng)].colour
    if mixed < 0.35:
        name = _pick(rng, SILHOUETTES)
    elif mixed < 0.6:
        colour = _pick(rng, tuple(COLOURS))
    elif mixed < 0.8:
        name, colour = _pick(rng, SILHOUETTES), None
    elif mixed < 0.9:
        name, colour = None, _pick(rng, tuple(COLOURS))
    noun = _noun(scene, name, colour, None)
    if noun.shapes:
        return None
    if rng.random() < 0.25:
        landmark = _unique_noun(scene, rng, _any_index(scene, rng))
        if landmark is not None:
            side = _pick(rng, tuple(_SIDES))
            return _phrase("nothing", (), "the ", noun, _pick(rng, _SIDES[side]), "the ", landmark)
    return _phrase("nothing", (), _pick(rng, ("the ", "", "the ")), noun)


def _nothing_beside(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape of the scene as being on the side of another one that is opposite to all shapes like it."""
    anchor, side = _any_index(scene, rng), _pick(rng, tuple(_SIDES))
    landmark = _unique_noun(scene, rng, anchor)
    noun = _noun_for(scene, rng, _any_index(scene, rng))
    distances = [_distance(scene, i, anchor, side) for i in noun.shapes]
    if landmark is None or anchor in noun.shapes or max(distances) > -_CLEAR_SHARE:
        return None
    return _phrase("nothing", (), "the ", noun, _pick(rng, _SIDES[side]), "the ", landmark)


def _nothing_overlaps(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape of the scene as being on or behind another one that no shape like it shares a box with."""
    anchor = _any_index(scene, rng)
    landmark = _unique_noun(scene, rng, anchor)
    noun = _noun_for(scene, rng, _any_index(scene, rng))
    box = scene.shapes[anchor].box
    if landmark is None or any(i == anchor or scene.shapes[i].box.iou(box) > _APART_IOU for i in noun.shapes):
        return None
    return _phrase("nothing", (), "the ", noun, _pick(rng, (" on the ", " in front of the ", " behind the ")), landmark)


def _reasoning(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape by what its silhouette is known for, and its color if another shape has that silhouette."""
    index = _any_index(scene, rng)
    shape = scene.shapes[index]
    clue = _pick(rng, KNOWN_FOR[shape.name])
    same = _noun(scene, shape.name, None, None)
    if len(same.shapes) == 1:
        return _phrase("reasoning", same.shapes, _Noun(clue, same.shapes))
    noun = _noun(scene, shape.name, shape.colour, None)
    if len(noun.shapes) != 1:
        return None
    return _phrase("reasoning", noun.shapes, _Noun(clue, noun.shapes), f", in {shape.colour}")


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Phrase | None]] = {
    "attribute": _attribute,
    "position": _position,
    "relation": _relation,
    "superlative": _superlative,
    "plural": _plural,
    "pair": _pair,
    "nothing": _nothing,
    "reasoning": _reasoning,
    "overlap": _overlap,
}

KINDS: tuple[str, ...] = tuple(_MAKERS)
