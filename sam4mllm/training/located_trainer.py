"""LocatedTrainer: a CheckedTrainer that also takes the losses of locations, logs their parts, and saves their weights.

transformers divides the loss of the text by the number of tokens of an optimizer step, over all batches and processes
(or, for models that average it themselves, each batch's by the number of batches). The losses of locations are divided
by the numbers of locations in the same way, so the gradients do not depend on how a step is divided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sam4mllm.training.batch_locations import LOCATIONS
from sam4mllm.training.checked_trainer import CheckedTrainer
from sam4mllm.training.location_losses import LocationLosses


class LocatedTrainer(CheckedTrainer):
    """A CheckedTrainer of a model that `locations`, its losses of locations, are attached to."""

    def __init__(self, *, locations: LocationLosses, **options: Any) -> None:
        super().__init__(**options)
        self._locations = locations
        self._counts: torch.Tensor | None = None
        # Whether the loss is divided by the number of tokens of all processes, and not by those of this one.
        self._divides_over_processes = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of the next optimizer step, after counting their locations."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._locations.parts.end_step()
        counts = self._locations.counts([batch.get(LOCATIONS) for batch in batches])
        self._divides_over_processes = items is not None and self.args.average_tokens_across_devices
        self._counts = self._summed(counts.float()) if self._divides_over_processes else counts
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch with the losses of its locations."""
        inputs = dict(inputs)
        locations = inputs.pop(LOCATIONS, None)
        # The trainer divides the loss of a model that averages it by the number of batches, and `CheckedTrainer` that
        # of a part by its share of the batch; sums over the locations of a step need neither.
        averages = kwargs.get("num_items_in_batch") is None
        factor = getattr(self, "current_gradient_accumulation_steps", 1) / self._share if averages else 1.0
        with self._locations.added(locations, tuple(inputs["input_ids"].shape), self._counts, factor):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def check_last_step(self, *args: Any, **kwargs: Any) -> None:
        """Check the loss of one conversation, whose losses of locations are means over it alone."""
        self._counts = None
        super().check_last_step(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the loss with the means of its parts since the last time."""
        if "loss" in logs:
            divided = self._divides_over_processes
            logs = {**logs, **self._locations.parts.means(self._summed, text_is_divided=divided)}
        super().log(logs, *args, **kwargs)

    def _attempt(self, *args: Any) -> Any:
        loss = super()._attempt(*args)
        if loss is None:
            self._locations.parts.discard_step()
        return loss

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, on the training's device."""
        total: torch.Tensor = self.accelerator.reduce(values.to(self.args.device), "sum")
        return total

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._locations.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._locations.load(Path(resume_from_checkpoint))
