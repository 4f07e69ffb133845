"""Placeholder targets: which stores they come from. The dry run's tests hold the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.targets import store
from sam4mllm.targets.placeholders import placeholder_targets
from sam4mllm.targets.prepare import compute_targets
from tests.targets.examples import SETTINGS, Counting, make_samples, under_other_ids


def test_stored_targets_of_shared_objects_are_found_under_each_id(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "images", images=2)
    shared = [*samples, *under_other_ids(samples[4:], "other")]
    targets = compute_targets(shared, Counting(), SETTINGS, tmp_path / "store").read()
    known = placeholder_targets([*shared, *under_other_ids(samples[:1], "other")], SETTINGS, tmp_path / "store")
    assert (known.stored, known.made, known.skipped) == (6, 1, 0)
    assert {name: known.targets[name].prompts for name in targets} == {
        name: target.prompts for name, target in targets.items()
    }


def test_stores_of_another_format_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(tmp_path / "images", images=1)
    monkeypatch.setattr(store, "FORMAT", store.FORMAT - 1)
    older = compute_targets(samples, Counting(), SETTINGS, tmp_path / "store")
    monkeypatch.undo()
    # An older shard lacks columns.
    (older.path / "targets-00000.parquet").write_bytes(b"")
    known = placeholder_targets(samples, SETTINGS, tmp_path / "store")
    assert (known.stored, known.made) == (0, 2)
    assert compute_targets(samples, Counting(), SETTINGS, tmp_path / "store").path != older.path
