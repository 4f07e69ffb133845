"""What happens beside the training loop: the log, and validation that keeps the best adapter.

These callbacks draw no random number and change no weight, so a run with them ends in the weights of one without. Of
several processes all validate, and the main one alone writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.train.validation import Validation
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext

logger = logging.getLogger(__name__)

_LOGGED = ("loss", "learning_rate", "grad_norm")


class DisableVisionInputGrads(TrainerCallback):
    """Keeps gradients out of the frozen eyes, through which checkpointing would send them for nothing.

    For reentrant checkpointing, which takes a layer for frozen when no gradient enters it, the trainer makes every
    embedding ask for one, that of the images' patches, too: each layer of the eyes is then computed twice and
    differentiated. The other kind, the default, needs none of that.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        chosen = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
        if not chosen.get("use_reentrant", False):
            model.get_base_model().disable_input_require_grads()


class LogCallback(TrainerCallback):
    """Writes the loss to the run's log whenever the trainer logs it, and tells it where no progress bar does."""

    def __init__(self, run: RunFolder) -> None:
        self._log = run.log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            figures = {name: float(logs[name]) for name in _LOGGED if name in logs}
            self._log.append({"step": state.global_step, "epoch": state.epoch, **figures})
            if args.disable_tqdm:
                logger.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, figures["loss"])


class ValidationCallback(TrainerCallback):
    """Validates every `every_steps` steps (0: never by itself), logs the figures and keeps the best adapter by cIoU.

    Beside it stands the calibration that fits the very answers by which it was found the best.

    `weights` gives the weights to keep where they are spread over the processes, else None; all processes call it.
    """

    def __init__(
        self,
        run: RunFolder,
        validate: Callable[[], Validation],
        every_steps: int,
        processes: DistributedContext = SINGLE_PROCESS,
        weights: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self._run = run
        self._validate = validate
        self._every_steps = every_steps
        self._processes = processes
        self._weights = weights

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        # Under FSDP, so that generating gathers the weights beside the layers as a training step does; else it does
        # nothing.
        register_fsdp_forward_method(model, "generate")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._every_steps and state.global_step % self._every_steps == 0:
            self.validate_at(state.global_step, model)

    def validate_at(self, step: int, model: Any) -> None:
        """Validate now, unless the log holds this step already. All processes come here."""
        if self._processes.broadcast_result(lambda: step in self._run.log.validations()):
            return
        found = self._validate()
        # The adapter first: killed between the two, a resume validates this step again and finds the same.
        is_best = self._processes.broadcast_result(lambda: self._is_best(found))
        if is_best:
            weights = self._weights()
            if self._processes.is_main:
                self._run.keep_best(model, step, found.ciou, weights, found.calibration)
        if self._processes.is_main:
            self._run.log.append({"step": step, "validation": found.record()})
            told = "validation of step %d: cIoU %.1f %%, %.1f %% malformed, of %d phrases%s"
            kept = "; the best so far, kept" if is_best else ""
            logger.info(told, step, 100 * found.ciou, 100 * found.malformed, found.n, kept)

    def _is_best(self, found: Validation) -> bool:
        best = self._run.best()
        return best is None or found.ciou > best[1]
