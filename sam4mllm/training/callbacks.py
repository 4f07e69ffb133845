"""Trainer callbacks: the run's log, progress, validation that keeps the best adapter, and frozen vision towers.

They draw no random numbers and change no weights, so they do not affect the trained weights. All processes validate;
only the main process writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.loss_parts import PARTS, TEXT_LOSS
from sam4mllm.training.validation import Validation
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import Advance

logger = logging.getLogger(__name__)

_LOGGED = ("loss", "learning_rate", "grad_norm", TEXT_LOSS, *PARTS)


class DisableVisionInputGrads(TrainerCallback):
    """A callback that prevents gradients in the frozen vision tower under gradient checkpointing.

    Reentrant checkpointing computes no gradients in a layer whose inputs do not require one, so the trainer makes the
    outputs of all embeddings require gradients, including those of the image patches. Each layer of the vision tower is
    then computed twice and differentiated without need. Non-reentrant checkpointing, the default, does not need this.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        chosen = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
        if not chosen.get("use_reentrant", False):
            model.get_base_model().disable_input_require_grads()


class ResumedLearningRate(TrainerCallback):
    """A callback that computes the learning rate of a resumed training's first step from its own schedule.

    The optimizer's state of a checkpoint has the rate of the schedule that the checkpoint was saved with. If the
    training is longer now, a schedule that decays has another rate at that step. Without a change of the schedule the
    rate is the checkpoint's, bit for bit.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        # Other schedules (reduce_lr_on_plateau, those of DeepSpeed) do not depend on the number of steps alone.
        if state.global_step == 0 or not isinstance(schedule, LambdaLR):
            return
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


class LogCallback(TrainerCallback):
    """A callback that appends each logged loss to the run's log, and prints it where no progress bar shows it."""

    def __init__(self, run: RunFolder) -> None:
        self._log = run.log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            figures = {name: float(logs[name]) for name in _LOGGED if name in logs}
            self._log.append({"step": state.global_step, "epoch": state.epoch, **figures})
            if args.disable_tqdm:
                logger.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, figures["loss"])


class EpochOrder(TrainerCallback):
    """A callback that sets the epoch of an order of the data, also that of a resumed run."""

    def __init__(self, order: Any) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # In a resumed epoch it is a fraction.
        self._order.set_epoch(math.floor(state.epoch or 0))


class ProgressCallback(TrainerCallback):
    """A callback that reports the number of finished steps to `advance`, first those of an interrupted training."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)


class ValidationCallback(TrainerCallback):
    """A callback that validates every `every_steps` steps, logs the figures and keeps the best adapter by cIoU.

    With 0 steps it validates at the end only. The calibration that was fitted to the answers of that validation is
    saved beside the adapter.

    `weights` returns the gathered weights where they are sharded over the processes, else None; all processes call it.
    `report` gets each validation, in the main process.
    """

    def __init__(
        self,
        run: RunFolder,
        validate: Callable[[], Validation],
        every_steps: int,
        processes: DistributedContext = SINGLE_PROCESS,
        weights: Callable[[], dict[str, Any] | None] = lambda: None,
        report: Callable[[Validation], None] = lambda validation: None,
    ) -> None:
        self._run = run
        self._validate = validate
        self._every_steps = every_steps
        self._processes = processes
        self._weights = weights
        self._report = report

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        # Under FSDP this makes `generate` gather the weights outside the layers, as a training step does; without FSDP
        # it does nothing.
        register_fsdp_forward_method(model, "generate")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._every_steps and state.global_step % self._every_steps == 0:
            self.validate_at(state.global_step, model)

    def validate_at(self, step: int, model: Any) -> None:
        """Validate the model after `step` steps, unless this step is in the log already; all processes call this."""
        if self._processes.broadcast_result(lambda: step in self._run.log.validations()):
            return
        validation = self._validate()
        # The adapter is saved before the log: if killed in between, a resumed run validates this step again.
        is_best = self._processes.broadcast_result(lambda: self._is_best(validation))
        if is_best:
            weights = self._weights()
            if self._processes.is_main:
                self._run.checkpoints.save_best(model, step, validation.ciou, weights, validation.calibration)
        if self._processes.is_main:
            self._run.log.append({"step": step, "validation": validation.record()})
            logger.info(
                "validation of step %d: cIoU %.1f %%, %.1f %% malformed, of %d phrases%s",
                step,
                100 * validation.ciou,
                100 * validation.malformed,
                validation.n,
                "; the best so far, kept" if is_best else "",
            )
            self._report(validation)

    def _is_best(self, validation: Validation) -> bool:
        best = self._run.checkpoints.best()
        return best is None or validation.ciou > best[1]
