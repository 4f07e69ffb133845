"""The evaluation protocols, on masks small enough to count their pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.registry import DATASETS, scored_dataset_names
from sam4mllm.errors import DataError
from sam4mllm.evaluation.areas import areas_of
from sam4mllm.evaluation.metrics import Mask, SentenceScore
from sam4mllm.evaluation.protocols import PROTOCOLS, protocol_for


class PredictedMask(NamedTuple):
    """An answer: its mask (H, W), and whether it was "no target", whatever its mask is."""

    mask: Mask
    answered_no_target: bool = False


def _scored(
    protocol: str, answer: PredictedMask, truth: Mask, ignored: Mask | None = None, min_pixels: int = 1
) -> SentenceScore:
    areas = areas_of([encode(answer.mask)], [encode(truth)], None if ignored is None else encode(ignored))
    return PROTOCOLS[protocol].score_sentence(areas, answer.answered_no_target, min_pixels)


def _columns(first: int, last: int) -> Mask:
    """A mask (2, 10) with the columns first to last - 1 set: two pixels each."""
    mask: Mask = np.zeros((2, 10), dtype=bool)
    mask[:, first:last] = True
    return mask


EMPTY = _columns(0, 0)
TRUTH = _columns(0, 4)


@pytest.mark.parametrize(
    ("protocol", "answer", "truth", "expected"),
    [
        # The truth holds 8 pixels, the answer 8, half of them shared: I = 4, U = 12.
        ("refcoco", PredictedMask(_columns(2, 6)), TRUTH, SentenceScore(4, 12, 4 / 12, True, True)),
        ("grefcoco", PredictedMask(_columns(2, 6)), TRUTH, SentenceScore(4, 12, 4 / 12, True, True)),
        ("reasonseg", PredictedMask(_columns(2, 6)), TRUTH, SentenceScore(4, 12, 4 / 12, True, True)),
        # A target, and an answer without a pixel.
        ("refcoco", PredictedMask(EMPTY), TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        ("grefcoco", PredictedMask(EMPTY), TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        ("reasonseg", PredictedMask(EMPTY), TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        # A target, and a "no target" answer with a mask: ReLA counts the raw mask, the others do not.
        (
            "refcoco",
            PredictedMask(_columns(2, 6), answered_no_target=True),
            TRUTH,
            SentenceScore(0, 8, 0.0, True, False),
        ),
        (
            "grefcoco",
            PredictedMask(_columns(2, 6), answered_no_target=True),
            TRUTH,
            SentenceScore(0, 12, 0.0, True, False),
        ),
        (
            "reasonseg",
            PredictedMask(_columns(2, 6), answered_no_target=True),
            TRUTH,
            SentenceScore(0, 8, 0.0, True, False),
        ),
        # No target, and none answered.
        ("grefcoco", PredictedMask(EMPTY), EMPTY, SentenceScore(0, 0, 1.0, False, False)),
        (
            "grefcoco",
            PredictedMask(_columns(2, 6), answered_no_target=True),
            EMPTY,
            SentenceScore(0, 0, 1.0, False, False),
        ),
        ("reasonseg", PredictedMask(EMPTY), EMPTY, SentenceScore(0, 0, 1.0, False, False)),
        ("refcoco", PredictedMask(EMPTY), EMPTY, SentenceScore(0, 0, 0.0, False, False)),
        # No target, but one answered.
        ("grefcoco", PredictedMask(_columns(2, 6)), EMPTY, SentenceScore(0, 8, 0.0, False, True)),
        ("reasonseg", PredictedMask(_columns(2, 6)), EMPTY, SentenceScore(0, 8, 0.0, False, True)),
    ],
)
def test_one_sentence_is_scored(protocol: str, answer: PredictedMask, truth: Mask, expected: SentenceScore) -> None:
    assert _scored(protocol, answer, truth) == expected


@pytest.mark.parametrize(
    ("protocol", "truth", "expected"),
    [
        ("refcoco", TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        ("grefcoco", TRUTH, SentenceScore(0, 10, 0.0, True, False)),
        ("grefcoco", EMPTY, SentenceScore(0, 0, 1.0, False, False)),
        ("reasonseg", TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        ("reasonseg", EMPTY, SentenceScore(0, 0, 1.0, False, False)),
    ],
)
def test_a_mask_below_min_pixels_is_no_target(protocol: str, truth: Mask, expected: SentenceScore) -> None:
    answer = PredictedMask(_columns(3, 5))
    assert _scored(protocol, answer, truth, min_pixels=5) == expected
    assert _scored(protocol, answer, truth, min_pixels=4).answered


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        # Columns 4 to 7 are ignored: of the answer's 8 pixels 4 remain, all on the truth.
        (PredictedMask(_columns(2, 6)), TRUTH, SentenceScore(4, 8, 0.5, True, True)),
        # An answer on ignored pixels alone is empty.
        (PredictedMask(_columns(4, 8)), EMPTY, SentenceScore(0, 0, 1.0, False, False)),
        (PredictedMask(_columns(4, 8)), TRUTH, SentenceScore(0, 8, 0.0, True, False)),
        (PredictedMask(_columns(4, 9)), EMPTY, SentenceScore(0, 2, 0.0, False, True)),
    ],
)
def test_ignored_pixels_are_excluded(answer: PredictedMask, truth: Mask, expected: SentenceScore) -> None:
    assert _scored("reasonseg", answer, truth, _columns(4, 8)) == expected


def test_every_data_set_has_its_protocol() -> None:
    for dataset in scored_dataset_names():
        if DATASETS[dataset].kind != "boxes":
            assert protocol_for(dataset).name == DATASETS[dataset].protocol
    assert protocol_for("refcoco", "grefcoco").name == "grefcoco"
    assert protocol_for("my own", "reasonseg").name == "reasonseg"


@pytest.mark.parametrize(("dataset", "protocol"), [("refcoco", "gres"), ("my own", None), ("flickr30k", None)])
def test_an_unknown_protocol_is_refused_with_the_known_ones(dataset: str, protocol: str | None) -> None:
    with pytest.raises(DataError, match="name one of: refcoco, grefcoco, reasonseg"):
        protocol_for(dataset, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ignored_pixels_are_excluded_under_every_protocol(protocol: str) -> None:
    scored = _scored(protocol, PredictedMask(_columns(2, 6)), TRUTH, _columns(5, 10))
    # Of the answer's columns 2 to 5 the last is ignored: I = 4, U = 8 + 2.
    assert scored == SentenceScore(4, 10, 0.4, True, True)
