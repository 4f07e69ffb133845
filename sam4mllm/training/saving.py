"""transformers' Trainer, whose error of a checkpoint that could not be written names its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from sam4mllm.utils.atomic_io import writing


class NamedCheckpointTrainer(Trainer):
    """A Trainer that reports a full disk with the name of the checkpoint; training resumes from the one before."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)
