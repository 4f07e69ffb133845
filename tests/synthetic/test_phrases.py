from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sam4mllm.geometry import Box
from sam4mllm.synthetic.phrases import KINDS, KNOWN_FOR, Phrase, phrases_of
from sam4mllm.synthetic.scenes import Scene, Shape
from sam4mllm.synthetic.silhouettes import SILHOUETTES
from tests.synthetic.phrase_parser import CLUES, ENDS, SIDES, SIZES, matching, shapes_of


def _phrases(scenes: Sequence[Scene], kind: str, times: int = 4) -> list[tuple[Scene, Phrase]]:
    found = []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([2, number])
        phrases = [phrases_of(scene, rng, kind) for _ in range(times)]
        found += [(scene, phrase) for phrase in phrases if phrase is not None]
    return found


def _scene(*shapes: tuple[str, str, tuple[int, int, int, int]]) -> Scene:
    """A scene of 100 x 100 pixels with plain rectangles that go by (name, colour, box x1 y1 x2 y2)."""
    made = []
    for name, colour, (x1, y1, x2, y2) in shapes:
        mask = np.zeros((100, 100), dtype=bool)
        mask[y1:y2, x1:x2] = True
        made.append(Shape(name, colour, "plain", Box(x1, y1, x2, y2), mask))
    return Scene(np.zeros((100, 100, 3), dtype=np.uint8), tuple(made))


def _texts(scene: Scene, kind: str, times: int = 200) -> dict[str, tuple[int, ...]]:
    """The phrases about the scene, with their shapes."""
    rng = np.random.default_rng(0)
    phrases = [phrases_of(scene, rng, kind) for _ in range(times)]
    return {phrase.text: phrase.shapes for phrase in phrases if phrase is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_phrase_is_true_of_all_its_shapes_and_of_no_other(scenes: list[Scene], kind: str) -> None:
    phrases = _phrases(scenes, kind)
    assert len(phrases) >= 40
    for scene, phrase in phrases:
        assert phrase.kind == kind
        assert shapes_of(scene, phrase.text, kind) == set(phrase.shapes), phrase.text
        assert list(phrase.shapes) == sorted(set(phrase.shapes))


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("nothing", 0, 0),
        ("plural", 2, 4),
        ("pair", 2, 2),
        *((kind, 1, 1) for kind in set(KINDS) - {"nothing", "plural", "pair"}),
    ],
)
def test_the_number_of_shapes_of_each_kind(scenes: list[Scene], kind: str, least: int, most: int) -> None:
    counts = {len(phrase.shapes) for _, phrase in _phrases(scenes, kind)}
    assert min(counts) == least and max(counts) <= most


@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold_the_words_and_the_shapes_that_match_them(scenes: list[Scene], kind: str) -> None:
    for scene, phrase in _phrases(scenes, kind):
        assert phrase.spans
        ends = [0]
        for start, end, which in phrase.spans:
            words = phrase.text[start:end]
            assert start >= ends[-1] and words == words.strip() != ""
            ends.append(end)
            if kind == "reasoning":
                assert words in CLUES and which == phrase.shapes
            else:
                assert matching(scene, words) == set(which), (phrase.text, words)


def test_every_side_end_and_size_occurs(scenes: list[Scene]) -> None:
    for kind, words in (("relation", SIDES), ("position", ENDS), ("superlative", SIZES)):
        texts = " ".join(f" {phrase.text} " for _, phrase in _phrases(scenes, kind))
        assert [word for word in words if f" {word} " not in texts] == []


def test_the_same_seed_gives_the_same_phrases(scenes: list[Scene]) -> None:
    for kind in KINDS:
        assert _phrases(scenes[:5], kind) == _phrases(scenes[:5], kind)


# A few clues by hand: what the others are held to is that each names one silhouette.
@pytest.mark.parametrize(
    ("clue", "name"),
    [
        ("the shape a wheel has", "ring"),
        ("the shape of a coin", "circle"),
        ("the figure with three corners", "triangle"),
        ("the plus sign", "cross"),
        ("the sign of love", "heart"),
        ("the third letter of the alphabet", "C"),
        ("what a painting hangs in", "frame"),
        ("what an archer shoots", "arrow"),
        ("the shape of a young moon", "crescent"),
    ],
)
def test_a_clue_refers_to_the_shape_that_is_known_for_it(clue: str, name: str) -> None:
    others = [other for other in ("star", "square", name) if other != name]
    scene = _scene(
        (others[0], "red", (0, 0, 20, 20)), (name, "blue", (40, 40, 60, 60)), (others[1], "red", (70, 0, 90, 20))
    )
    assert _texts(scene, "reasoning")[clue] == (1,)


def test_every_silhouette_has_clues_and_no_clue_begins_another() -> None:
    """Otherwise the writer could replace the clue of another silhouette in a reasoning phrase."""
    assert set(KNOWN_FOR) == set(SILHOUETTES)
    clues = [clue for clues in KNOWN_FOR.values() for clue in clues]
    assert len(set(clues)) == len(clues) and all(len(clues) >= 3 for clues in KNOWN_FOR.values())
    assert not [(one, other) for one in clues for other in clues if one != other and other.startswith(one)]


def test_two_shapes_of_one_silhouette_are_distinguished_by_colour() -> None:
    scene = _scene(("ring", "red", (0, 0, 20, 20)), ("ring", "blue", (40, 40, 60, 60)))
    texts = _texts(scene, "reasoning")
    assert texts["the shape a wheel has, in red"] == (0,) and texts["the shape of a doughnut, in blue"] == (1,)
    assert all(", in " in text for text in texts)
    alike = _scene(("ring", "red", (0, 0, 20, 20)), ("ring", "red", (40, 40, 60, 60)))
    assert _texts(alike, "reasoning") == {}


def test_near_ties_are_not_described() -> None:
    """Centres 9 of 100 pixels apart both ways, boxes of 400 and 480 square pixels."""
    scene = _scene(("ring", "red", (0, 0, 20, 20)), ("star", "blue", (7, 9, 31, 29)))
    assert [_texts(scene, kind) for kind in ("position", "relation", "superlative")] == [{}, {}, {}]
    apart = _scene(("ring", "red", (0, 0, 20, 20)), ("star", "blue", (50, 2, 80, 22)))
    assert _texts(apart, "position")["the shape on the left"] == (0,)
    assert _texts(apart, "relation")["the star right of the ring"] == (1,)
    assert _texts(apart, "superlative")["the largest shape"] == (1,)
    assert not [text for text in _texts(apart, "position") if "top" in text or "bottom" in text or "lowest" in text]
    assert not [text for text in _texts(apart, "relation") if "above" in text or "below" in text or "under" in text]


def test_a_scene_without_such_shapes_gives_no_phrase() -> None:
    alone = _scene(("ring", "red", (0, 0, 20, 20)))
    kinds = ("position", "relation", "superlative", "plural", "pair")
    assert [_texts(alone, kind) for kind in kinds] == [{}] * len(kinds)
    twins = _scene(("ring", "red", (0, 0, 20, 20)), ("ring", "red", (40, 40, 60, 60)))
    assert _texts(twins, "attribute") == {} and _texts(twins, "pair") == {}
    assert _texts(twins, "plural")["all the red rings"] == (0, 1)
