"""Referring expressions for a scene: phrases of nine kinds, each with the shapes that it refers to.

A phrase is true of its shapes by a clear margin and of no other shape; near ties are never described. Phrases of the
kind "overlap" ("the ring around the star") need two shapes that share a box. `Phrase.spans` maps words to shapes (also
the landmark of a relation), for the scripts that build the toy models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.nouns import Noun, any_index, noun_for, noun_of, pick, unique_noun
from sam4mllm.synthetic.scenes import COLOURS, Scene
from sam4mllm.synthetic.silhouettes import SILHOUETTES


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase about a scene, with the indexes of its shapes, and the spans (start, end, shapes) of its nouns."""

    text: str
    kind: str
    shapes: tuple[int, ...]
    spans: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


_Piece = str | Noun
_CLEAR_SHARE = 0.12  # of the image's side: how far apart centres must be for "left of", "above"
_CLEAR_RATIO = 1.5  # of the area: how much larger "the largest" must be than the next
# Shapes share a box above the first IoU of their boxes, and are clearly apart below the second one.
_SHARED_IOU, APART_IOU = 0.5, 0.2


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
        words = piece.words if isinstance(piece, Noun) else piece
        if isinstance(piece, Noun):
            spans.append((len(text), len(text) + len(words), piece.shapes))
        text += words
    return Phrase(text, kind, tuple(sorted(shapes)), tuple(spans))


def _attribute(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = unique_noun(scene, rng, any_index(scene, rng))
    return None if noun is None else _phrase("attribute", noun.shapes, pick(rng, ("the ", "", "the ")), noun)


def _position(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe the first or last shape along an axis, among all shapes or those of a noun."""
    noun = noun_of(scene, None, None, None) if rng.random() < 0.4 else noun_for(scene, rng, any_index(scene, rng))
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
    anchor = any_index(scene, rng)
    landmark = unique_noun(scene, rng, anchor)
    target = any_index(scene, rng)
    if landmark is None or target == anchor:
        return None
    noun = noun_for(scene, rng, target)
    side = pick(rng, tuple(_SIDES))
    candidates = [i for i in noun.shapes if i != anchor]
    distances = [_distance(scene, i, anchor, side) for i in candidates]
    targets = [i for i, share in zip(candidates, distances, strict=True) if share >= _CLEAR_SHARE]
    unclear = any(0 < share < _CLEAR_SHARE for share in distances)
    # If the noun matches one shape only, the relation is redundant: such phrases are kept, but are rarer.
    if unclear or len(targets) != 1 or (len(candidates) == 1 and rng.random() < 0.5):
        return None
    return _phrase("relation", targets, "the ", noun, pick(rng, _SIDES[side]), "the ", landmark)


_ENCLOSING = ("ring", "frame", "C")


def _overlapping(scene: Scene, index: int, in_front: bool) -> tuple[list[int], bool]:
    """Return the shapes in front of (or behind) the shape `index` that share its box, and whether any nearly does."""
    ious = {i: shape.box.iou(scene.shapes[index].box) for i, shape in enumerate(scene.shapes) if i != index}
    sharing = [i for i, iou in ious.items() if iou >= _SHARED_IOU and (i > index) == in_front]
    return sharing, any(APART_IOU < iou < _SHARED_IOU for iou in ious.values())


def _overlap(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape by the one that shares its box: what is on, around, in front of or behind it."""
    anchor, in_front = any_index(scene, rng), bool(rng.random() < 0.6)
    sharing, unclear = _overlapping(scene, anchor, in_front)
    landmark = unique_noun(scene, rng, anchor)
    if not sharing or unclear or landmark is None:
        return None
    where = pick(rng, (" on the ", " in front of the ")) if in_front else " behind the "
    if len(sharing) == 1 and rng.random() < 0.25:
        return _phrase("overlap", sharing, f"what is{where}", landmark)
    noun = noun_for(scene, rng, pick(rng, sharing))
    targets = [i for i in noun.shapes if i in sharing]
    # As for relations, phrases whose noun matches one shape only are rarer.
    if len(targets) != 1 or (len(noun.shapes) == 1 and rng.random() < 0.5):
        return None
    if in_front and scene.shapes[targets[0]].name in _ENCLOSING and rng.random() < 0.5:
        where = " around the "
    return _phrase("overlap", targets, "the ", noun, where, landmark)


def _superlative(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = noun_of(scene, None, None, None) if rng.random() < 0.5 else noun_for(scene, rng, any_index(scene, rng))
    if len(noun.shapes) < 2:
        return None
    ordered = sorted(noun.shapes, key=lambda i: scene.shapes[i].box.area)
    large = bool(rng.integers(2))
    best, other = (ordered[-1], ordered[-2]) if large else (ordered[0], ordered[1])
    ratio = scene.shapes[best].box.area / scene.shapes[other].box.area
    if max(ratio, 1 / ratio) < _CLEAR_RATIO:
        return None
    word = pick(rng, ("largest", "biggest") if large else ("smallest", "tiniest"))
    return _phrase("superlative", [best], f"the {word} ", noun)


def _plural(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    noun = noun_for(scene, rng, any_index(scene, rng), plural=True)
    if not 2 <= len(noun.shapes) <= 4:
        return None
    return _phrase("plural", noun.shapes, pick(rng, ("all ", "all the ", "the ")), noun)


def _pair(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    if len(scene.shapes) < 2:
        return None
    first, second = (int(i) for i in rng.choice(len(scene.shapes), 2, replace=False))
    nouns = unique_noun(scene, rng, first), unique_noun(scene, rng, second)
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
    name: str | None = scene.shapes[any_index(scene, rng)].name
    colour: str | None = scene.shapes[any_index(scene, rng)].colour
    if mixed < 0.35:
        name = pick(rng, SILHOUETTES)
    elif mixed < 0.6:
        colour = pick(rng, tuple(COLOURS))
    elif mixed < 0.8:
        name, colour = pick(rng, SILHOUETTES), None
    elif mixed < 0.9:
        name, colour = None, pick(rng, tuple(COLOURS))
    noun = noun_of(scene, name, colour, None)
    if noun.shapes:
        return None
    if rng.random() < 0.25:
        landmark = unique_noun(scene, rng, any_index(scene, rng))
        if landmark is not None:
            side = pick(rng, tuple(_SIDES))
            return _phrase("nothing", (), "the ", noun, pick(rng, _SIDES[side]), "the ", landmark)
    return _phrase("nothing", (), pick(rng, ("the ", "", "the ")), noun)


def _nothing_beside(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape of the scene as being on the side of another one that is opposite to all shapes like it."""
    anchor, side = any_index(scene, rng), pick(rng, tuple(_SIDES))
    landmark = unique_noun(scene, rng, anchor)
    noun = noun_for(scene, rng, any_index(scene, rng))
    distances = [_distance(scene, i, anchor, side) for i in noun.shapes]
    if landmark is None or anchor in noun.shapes or max(distances) > -_CLEAR_SHARE:
        return None
    return _phrase("nothing", (), "the ", noun, pick(rng, _SIDES[side]), "the ", landmark)


def _nothing_overlaps(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape of the scene as being on or behind another one that no shape like it shares a box with."""
    anchor = any_index(scene, rng)
    landmark = unique_noun(scene, rng, anchor)
    noun = noun_for(scene, rng, any_index(scene, rng))
    box = scene.shapes[anchor].box
    if landmark is None or any(i == anchor or scene.shapes[i].box.iou(box) > APART_IOU for i in noun.shapes):
        return None
    return _phrase("nothing", (), "the ", noun, pick(rng, (" on the ", " in front of the ", " behind the ")), landmark)


def _reasoning(scene: Scene, rng: np.random.Generator) -> Phrase | None:
    """Describe a shape by what its silhouette is known for, and its color if another shape has that silhouette."""
    index = any_index(scene, rng)
    shape = scene.shapes[index]
    clue = pick(rng, KNOWN_FOR[shape.name])
    same = noun_of(scene, shape.name, None, None)
    if len(same.shapes) == 1:
        return _phrase("reasoning", same.shapes, Noun(clue, same.shapes))
    noun = noun_of(scene, shape.name, shape.colour, None)
    if len(noun.shapes) != 1:
        return None
    return _phrase("reasoning", noun.shapes, Noun(clue, noun.shapes), f", in {shape.colour}")


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
