"""The batches of the embedded MLLM's pre-training, and its schedule."""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import sam4mllm.models
from tests.scripts import load_script

rows, batches, attention = (load_script(name) for name in ("mllm_rows", "mllm_batches", "mllm_attention"))
building, build = load_script("building"), load_script("build_mllm")
FOLDER = sam4mllm.models.path("mllm")


@pytest.fixture(scope="module")
def packer() -> object:
    return rows.Packer(PreTrainedTokenizerFast.from_pretrained(FOLDER))


def test_a_batch_holds_the_rows_of_its_images_after_their_prefix(packer: object) -> None:
    packed = [rows.make_packed(packer, index) for index in range(3)]
    batch = batches.Batch.of_arrays(batches.collate(packed, [rows.make_tower_only(0)], packer), torch.device("cpu"))
    prefix, count, length = batch.layout
    assert len(batch.images) == 4 and len(batch.ids) == 3 and batch.ids.shape[1] == prefix + count * length
    ids = batch.ids[:, prefix:].reshape(3, count, length)
    labels, weights = (each.reshape(3, count, length) for each in (batch.labels, batch.weights))
    positions = batch.positions[:, prefix:].reshape(3, count, length)
    for b, image in enumerate(packed):
        torch.testing.assert_close(batch.images[b], image.image, atol=1e-3, rtol=1e-3)
        for r, row in enumerate(image.rows):
            size = len(row.ids)
            assert ids[b, r, :size].tolist() == row.ids and labels[b, r, :size].tolist() == row.labels
            assert weights[b, r, :size].tolist() == pytest.approx(row.weights)
            assert (labels[b, r, size:] == -100).all() and (weights[b, r, size:] == 0).all()
            assert positions[b, r, 0] == prefix + row.distance


def test_a_batch_holds_the_targets_of_the_supervised_attention(packer: object) -> None:
    packed = [rows.make_packed(packer, index) for index in range(2)]
    batch = batches.Batch.of_arrays(batches.collate(packed, [], packer), torch.device("cpu"))
    for layer, (supervised, is_target) in batch.attention_targets.items():
        expected = [
            ((b, r, position, heads), set(attend_to))
            for b, image in enumerate(packed)
            for r, row in enumerate(image.rows)
            for of_layer, heads, position, attend_to in row.attention_targets
            if of_layer == layer
        ]
        found = [
            (tuple(where), set(np.flatnonzero(on))) for where, on in zip(supervised.tolist(), is_target, strict=True)
        ]
        assert found == expected and found


def _options(**changed: int) -> argparse.Namespace:
    return argparse.Namespace(**{"batch": 2, "tower_only": 1, "workers": 1, "passes": 1, **changed})


def test_batches_depend_on_their_number_alone() -> None:
    from_the_start = [
        each["ids"] for each in islice(build.training_batches(FOLDER, 4, _options(), building.Ranks()), 3)
    ]
    resumed = next(iter(build.training_batches(FOLDER, 6, _options(), building.Ranks())))
    np.testing.assert_array_equal(from_the_start[2], resumed["ids"])
    assert from_the_start[0].shape != resumed["ids"].shape or (from_the_start[0] != resumed["ids"]).any()


def test_a_batch_is_used_at_most_as_often_as_asked() -> None:
    used = [
        each["images"].sum()
        for each in islice(build.training_batches(FOLDER, 0, _options(passes=2), building.Ranks()), 6)
    ]
    assert max(used.count(each) for each in used) <= 2 and len(set(used)) >= 3


def test_the_learning_rate_rises_over_steps_and_falls_with_the_progress() -> None:
    def rate(step: int, progress: float) -> float:
        return float(building.learning_rate(step, progress, 2.0, warm=10, falling=0.5))

    assert rate(0, 0.0) == pytest.approx(0.2) and rate(9, 0.1) == 2.0
    assert rate(50, 0.5) == 2.0 and rate(75, 0.75) == pytest.approx(1.0) and rate(100, 1.0) == rate(120, 1.1) == 0.0


def test_queries_attend_to_the_prefix_and_to_earlier_positions_of_their_row() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(attention.attend(query, key, value), expected)
