"""Lengths of runs: of values, and of counts beside the loop that reports what is wrong with malformed ones."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.data import masks
from sam4mllm.data.masks import check_rle, encode
from sam4mllm.data.rle_runs import run_array, run_lengths


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1))
def test_runs_of_values(values: list[int]) -> None:
    expected = [len(list(run)) for _, run in groupby(values)]
    assert run_lengths(np.array(values)).tolist() == expected
    assert run_lengths(np.array(values, dtype=np.uint8)).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40) | st.text(max_size=5))
def test_runs_of_any_text_are_those_of_the_loop(counts: str) -> None:
    array = run_array(counts)
    if array is not None:
        assert array.tolist() == masks._runs_of_counts(counts)


@pytest.mark.parametrize("shape_hw", [(1, 1), (7, 5), (300, 200)])
def test_runs_of_a_mask(shape_hw: tuple[int, int]) -> None:
    for seed in range(5):
        counts = encode(np.random.default_rng(seed).random(shape_hw) < 0.2 * seed)["counts"]
        array = run_array(counts)
        assert array is not None and array.tolist() == masks._runs_of_counts(counts)
        assert array.sum() == shape_hw[0] * shape_hw[1]


@pytest.mark.parametrize("counts", ["", "o", "0o", "\x7f0", "/0", "é", "oooooo0", "0" * (1 << 16 | 1)])
def test_malformed_and_very_long_counts_have_no_array(counts: str) -> None:
    assert run_array(counts) is None


def test_masks_of_more_characters_than_an_array_are_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = encode(np.random.default_rng(0).random((400, 400)) < 0.5)
    assert len(noise["counts"]) > 1 << 16 and run_array(noise["counts"]) is None
    assert check_rle(noise) == noise


def test_usual_masks_are_checked_without_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:30, 10:40] = True
    monkeypatch.setattr(masks, "_runs_of_counts", lambda _: pytest.fail("the loop was used"))
    assert check_rle(encode(mask)) == encode(mask)
