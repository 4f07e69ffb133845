"""CIDEr-D: hand-computed cases, and equality to pycocoevalcap, whose scores are stored in cider_d.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sam4mllm.evaluation.cider import cider_d

STORED = [json.loads(line) for line in (Path(__file__).parent / "cider_d.jsonl").read_text("utf-8").splitlines()]


def test_the_scores_are_those_of_the_reference() -> None:
    assert len(STORED) == 50
    scores = cider_d([row["caption"] for row in STORED], [row["references"] for row in STORED])
    assert scores == pytest.approx([row["cider_d"] for row in STORED], abs=1e-12)


def test_scores_equal_those_computed_by_hand() -> None:
    # Two items, so a token of one of them weighs log 2, and one of both of them nothing.
    references = [["red ring"], ["green star", "star"]]
    # "red ring" is its reference: the cosines for n = 1, 2 are 1, there are no trigrams.
    # "star" beside "green star": the cosine for n = 1 is 1/sqrt(2), and the lengths differ by one bigram; beside
    # "star", it is 1.
    penalty = math.exp(-1 / 72)
    expected = [10 * 2 / 4, 10 * (penalty / math.sqrt(2) + 1) / 4 / 2]
    assert cider_d(["red ring", "star"], references) == pytest.approx(expected)


def test_an_ngram_counts_at_most_as_often_as_in_the_reference() -> None:
    once, twice = (cider_d([text, "b"], [["ring"], ["star"]])[0] for text in ("ring", "ring ring"))
    # The vector (2) is clipped to (1), so the cosine for n = 1 is 1 * 1 / (2 * 1).
    assert once == pytest.approx(10 / 4)
    assert twice == pytest.approx(10 / 4 / 2 * math.exp(-1 / 72))


def test_scores_depend_on_the_references_of_the_whole_split() -> None:
    alone = cider_d(["red ring"], [["red ring"]])
    assert alone == [0.0]
    # A token of all items weighs nothing.
    assert cider_d(["red", "a"], [["red ring"], ["red star"]])[0] == 0.0
    assert cider_d(["red", "a"], [["red ring"], ["green star"]])[0] > 0


def test_no_captions_have_no_scores_and_each_needs_references() -> None:
    assert cider_d([], []) == []
    with pytest.raises(ValueError, match="needs references"):
        cider_d(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="needs references"):
        cider_d(["a"], [["a"], ["b"]])
