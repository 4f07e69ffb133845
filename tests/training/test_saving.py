"""A checkpoint that cannot be written: the error names it, and training resumes from the one before."""

from __future__ import annotations

import errno

import pytest
from transformers import Trainer

from tests.training.helpers import adapter_of, largest_difference, make_recipe, run_fit


def test_a_full_disk_is_an_error_with_the_checkpoint_and_training_resumes(
    tmp_path, fast_vlm, uninterrupted, monkeypatch
):
    recipe = make_recipe(tmp_path, fast_vlm)
    saved = Trainer._save_rng_state

    def save_or_fail(self, folder):
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(self, folder)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device") as raised:
        patched.setattr(Trainer, "_save_rng_state", save_or_fail)
        run_fit(recipe)
    assert raised.value.filename == str(tmp_path / "run/checkpoints/checkpoint-4")
    assert largest_difference(adapter_of(run_fit(recipe).path), adapter_of(uninterrupted.path)) == 0
