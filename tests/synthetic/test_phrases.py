from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sam4mllm.geometry import Box
from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.phrases import KINDS, Phrase, phrases_of
from sam4mllm.synthetic.scenes import Scene, Shape
from sam4mllm.synthetic.silhouettes import SILHOUETTES
from tests.synthetic.phrase_parser import CLUES, ENDS, LAYERS, OVERLAP, RELATION, SIDES, SIZES, matching, shapes_of


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
        *((kind, 1, 1) for kind in sorted(set(KINDS) - {"nothing", "plural", "pair"})),
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


def test_every_side_end_size_and_layer_occurs(scenes: list[Scene]) -> None:
    for kind, words in (("relation", SIDES), ("position", ENDS), ("superlative", SIZES), ("overlap", LAYERS)):
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
    assert len(set(clues)) == len(clues) and all(len(clues) == 4 for clues in KNOWN_FOR.values())
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


RING_ON_SQUARE = (("square", "red", (20, 20, 60, 60)), ("ring", "blue", (22, 22, 62, 62)))
STAR_APART = ("star", "green", (70, 70, 95, 95))


def test_shapes_that_share_a_box_are_described_by_their_order() -> None:
    texts = _texts(_scene(*RING_ON_SQUARE, STAR_APART), "overlap", 400)
    for where in ("on", "in front of", "around"):
        assert texts[f"the ring {where} the square"] == (1,)
    assert texts["what is on the square"] == texts["what is in front of the square"] == (1,)
    assert texts["the square behind the ring"] == texts["what is behind the ring"] == (0,)
    assert not [text for text in texts if "star" in text or "around the ring" in text or "the square on" in text]
    star_on_square = _scene(RING_ON_SQUARE[0], ("star", "blue", (22, 22, 62, 62)))
    assert not [text for text in _texts(star_on_square, "overlap", 400) if "around" in text]


def test_of_two_shapes_on_a_third_one_is_described_by_what_distinguishes_it() -> None:
    texts = _texts(_scene(*RING_ON_SQUARE, ("ring", "green", (21, 21, 61, 61))), "overlap", 1000)
    assert texts["the blue ring on the square"] == (1,) and texts["the green ring on the square"] == (2,)
    assert not {"the ring on the square", "the ring around the square", "what is on the square"} & set(texts)
    assert texts["what is on the blue ring"] == (2,) and texts["what is behind the blue ring"] == (0,)


def test_without_target_a_shape_is_described_on_one_whose_box_it_does_not_share() -> None:
    texts = _texts(_scene(*RING_ON_SQUARE, STAR_APART), "nothing", 4000)
    overlaps = {text for text in texts if OVERLAP.fullmatch(text)}
    assert {"the star on the ring", "the star behind the square", "the ring in front of the star"} <= overlaps
    assert not [text for text in overlaps if "star" not in text and "green" not in text]
    assert set(texts.values()) == {()}


def test_boxes_that_are_nearly_shared_are_not_described() -> None:
    """Boxes with an IoU of 0.33, beside a pair that shares a box."""
    near = ("star", "green", (40, 20, 80, 60))
    assert _texts(_scene(RING_ON_SQUARE[0], near), "overlap") == {}
    texts = [*_texts(_scene(*RING_ON_SQUARE, near), "overlap"), *_texts(_scene(*RING_ON_SQUARE, near), "nothing")]
    assert not [text for text in texts if OVERLAP.fullmatch(text) and "star" in text]


def test_without_target_a_shape_is_described_on_the_wrong_side_of_another_one() -> None:
    apart = _scene(("ring", "red", (0, 0, 20, 20)), ("star", "blue", (50, 2, 80, 22)))
    relations = [text for text in _texts(apart, "nothing", 2000) if RELATION.fullmatch(text)]
    beside = [text for text in relations if matching(apart, RELATION.fullmatch(text.removeprefix("the "))[1])]  # type: ignore[index]
    assert "the star left of the ring" in beside and "the red ring right of the star" in beside
    assert not [text for text in beside if "above" in text or "below" in text or "under" in text or "over" in text]


def test_every_layer_but_around_occurs_without_target(scenes: list[Scene]) -> None:
    texts = [phrase.text for _, phrase in _phrases(scenes, "nothing") if OVERLAP.fullmatch(phrase.text)]
    assert len(texts) >= 10
    assert {OVERLAP.fullmatch(text)[2] for text in texts} == set(LAYERS) - {"around"}  # type: ignore[index]


def test_a_scene_without_such_shapes_gives_no_phrase() -> None:
    alone = _scene(("ring", "red", (0, 0, 20, 20)))
    kinds = ("position", "relation", "superlative", "plural", "pair", "overlap")
    assert [_texts(alone, kind) for kind in kinds] == [{}] * len(kinds)
    twins = _scene(("ring", "red", (0, 0, 20, 20)), ("ring", "red", (40, 40, 60, 60)))
    assert _texts(twins, "attribute") == {} and _texts(twins, "pair") == {}
    assert _texts(twins, "plural")["all the red rings"] == (0, 1)
