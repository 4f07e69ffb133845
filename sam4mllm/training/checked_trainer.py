"""CheckedTrainer: transformers' Trainer that stops at losses that are not finite and halves batches that do not fit.

A batch for which memory runs out is divided, and the gradients of its parts are accumulated, so each optimizer step
still sees the same conversations. The optimizer step is begun anew with the random states of its beginning: the adapter
is that of a run with smaller batches and more accumulation from the start, up to rounding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from sam4mllm.errors import DeviceMemoryError, ModelError, Sam4mllmError, TrainingError
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.runs.checkpoints import CHECKPOINT, numbered_folders
from sam4mllm.training.collator import IGNORED, Collator, describe
from sam4mllm.training.saving import NamedCheckpointTrainer
from sam4mllm.utils.attention import without_cudnn_attention
from sam4mllm.utils.hub import ADAPTER_WEIGHTS
from sam4mllm.utils.memory import is_out_of_memory, release_memory
from sam4mllm.utils.messages import first_and_more, first_line

logger = logging.getLogger(__name__)

_CONVERSATIONS = "conversations"
_NAMED = 8


class CheckedTrainer(NamedCheckpointTrainer):
    """A Trainer for `Collator` that checks loss and gradients, and divides batches where memory runs out.

    `order` is a torch sampler of the training set, or None for the trainer's own.

    Raises:
        TrainingError: (in `train`) A loss or gradient is not finite; step, batch and last good checkpoint are named.
        DeviceMemoryError: (in `train`) Memory does not suffice for one conversation, or several processes train
            together, which cannot repeat a step alone.
    """

    def __init__(self, *, collator: Collator, callbacks: Sequence[Any], order: Any = None, **options: Any) -> None:
        finite = _FiniteGradients(self)
        super().__init__(data_collator=_KeepConversations(collator), callbacks=[finite, *callbacks], **options)
        self._collator = collator
        self._order = order
        self._rows: int = self.args.per_device_train_batch_size
        # The batches of the current optimizer step so far, and the states of torch's random generators at its start.
        self._batches: list[Sequence[Conversation]] = []
        self._random_states: list[torch.Tensor] = []
        self._share = 1.0

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """Train, from a checkpoint or from the beginning.

        Raises:
            ModelError: A file of the checkpoint is a pickle of other objects than states of training.
        """
        try:
            with without_cudnn_attention(), _single_threaded_tokenizers():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        except UnpicklingError as error:
            raise ModelError(
                f"{resume_from_checkpoint}: a file in it is a pickle of other objects than the states of training, and "
                "was not read; remove that folder to resume from an earlier checkpoint"
            ) from error
        except Sam4mllmError as error:
            error.args = (_original_message(error),)
            raise

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the order that was given, or the trainer's own."""
        return super()._get_train_sampler(*args, **kwargs) if self._order is None else self._order

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of the next optimizer step."""
        self._batches = []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of one batch, in parts where memory does not suffice, and return its loss."""
        conversations = inputs.pop(_CONVERSATIONS)
        if not self._batches:
            self._random_states = _random_states(self.args.device)
        self._batches.append(conversations)
        begun_with = self._rows
        fits = len(conversations) <= self._rows
        loss = self._attempt(model, [(conversations, inputs if fits else None)], num_items_in_batch)
        while loss is None:
            # The failed attempt may have added a part of its gradients, so the optimizer step begins anew.
            model.zero_grad()
            release_memory()
            _restore_random_states(self._random_states, self.args.device)
            loss = self._attempt(model, [(batch, None) for batch in self._batches], num_items_in_batch)
        if self._rows < begun_with:
            self._report_division()
        if not torch.isfinite(loss):
            raise TrainingError(self._problem(f"the loss is {loss.item()}", conversations))
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a part, as a share of its batch's loss where the model averages over the tokens itself."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if self._share == 1 else loss * self._share

    def _attempt(self, model: Any, batches: Sequence[tuple[Sequence[Conversation], Any]], items: Any) -> Any:
        """Add the gradients of batches and return the loss of the last one; None where memory runs out."""
        loss = None
        try:
            for conversations, inputs in batches:
                loss = self._add_gradients(model, conversations, inputs, items)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = min(self._rows, max(len(conversations) for conversations, _ in batches))
            if rows == 1 or self.accelerator.distributed_type != DistributedType.NO:
                raise DeviceMemoryError(self._memory_problem(rows, error)) from error
            self._rows = rows // 2
            return None
        return loss

    def _add_gradients(self, model: Any, conversations: Sequence[Conversation], inputs: Any, items: Any) -> Any:
        """Add the gradients of one batch, from `inputs` or, for None, in parts of at most `_rows` conversations."""
        if inputs is not None:
            return super().training_step(model, inputs, items)
        parts = [conversations[start : start + self._rows] for start in range(0, len(conversations), self._rows)]
        # Images are decoded again, because no rule divides the image tensors of every model.
        inputs_of_parts = [self._collator(part) for part in parts]
        tokens = [int((part["labels"][:, 1:] != IGNORED).sum()) for part in inputs_of_parts]
        loss = torch.zeros((), device=self.args.device)
        for part, count in zip(inputs_of_parts, tokens, strict=True):
            # With the number of tokens of the optimizer step, the losses of parts are sums already.
            self._share = 1.0 if items is not None else count / sum(tokens)
            loss = loss + super().training_step(model, part, items)
        self._share = 1.0
        return loss

    def _report_division(self) -> None:
        rows, accumulation = self._rows, self.args.gradient_accumulation_steps
        whole = self.args.per_device_train_batch_size
        logger.warning(
            "out of memory with %d conversations at once; %d at once from now on, and each step still sees %d "
            "(training.per_device_train_batch_size: %d with training.gradient_accumulation_steps: %d does the same "
            "faster)",
            whole,
            rows,
            whole * accumulation,
            rows,
            -(-whole // rows) * accumulation,
        )

    def _memory_problem(self, rows: int, error: Exception) -> str:
        reason = first_line(error)
        where = f"step {self.state.global_step + 1}: out of memory with {rows} conversation(s) at once"
        if rows == 1:
            longest = "; ".join(describe(each) for each in self._batches[-1][:_NAMED])
            return (
                f"{where} ({longest}): set training.gradient_checkpointing: true, lower model.image_size or "
                f"method.phrases, or quantize the model ({reason})"
            )
        divisor = next(number for number in range(2, rows + 1) if rows % number == 0)
        return (
            f"{where}: set training.per_device_train_batch_size: {rows // divisor} and "
            f"training.gradient_accumulation_steps: {divisor * self.args.gradient_accumulation_steps}, which keeps the "
            f"number of conversations per step, and run the same command again to resume ({reason})"
        )

    def _problem(self, what: str, conversations: Sequence[Conversation], last_step: int | None = None) -> str:
        """Return the message about a number that is not finite, with the batch and the last good checkpoint.

        `last_step` is the step whose weights gave the number, if it was the last one; None during a step.
        """
        named = first_and_more([describe(each) for each in conversations], _NAMED)
        last = last_finite_checkpoint(Path(self.args.output_dir), before=last_step)
        return (
            f"step {last_step or self.state.global_step + 1}: {what}, with the batch: {named}; last good checkpoint: "
            f"{last or 'none was saved before'}. Check these samples; if they are right, lower training.learning_rate, "
            "or set model.dtype: float32, and train into another output"
        )

    def check_last_step(self, step: int, conversation: Conversation) -> None:
        """Check the loss of one conversation with the weights of the last step, of which no step computes the loss.

        All processes call this, with the same conversation.

        Raises:
            TrainingError: The loss is not finite.
        """
        model, was_training = self.model_wrapped, self.model.training
        model.eval()
        with torch.no_grad(), without_cudnn_attention(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(self._collator([conversation])))
        model.train(was_training)
        if not torch.isfinite(loss):
            raise TrainingError(self._problem(f"the loss after the last step is {loss.item()}", [conversation], step))

    def check_gradients(self) -> None:
        """Check the gradients of the current optimizer step before they change the weights.

        Raises:
            TrainingError: A gradient is not finite.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
        if local and not torch.isfinite(torch.nn.utils.get_total_norm(local, torch.inf)):
            conversations = [each for batch in self._batches for each in batch]
            raise TrainingError(self._problem("a gradient is not finite", conversations))


def _original_message(error: Sam4mllmError) -> str:
    """Return the error's message without the traceback that torch adds to the error of a data loader's worker."""
    message = str(error)
    if not message.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        return message
    return message.rstrip().rpartition(f"{type(error).__name__}: ")[2]


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Set TOKENIZERS_PARALLELISM inside the block, if it is unset: tokenizers warn in each process forked after use."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]


class _FiniteGradients(TrainerCallback):
    """A callback that checks the gradients; with float16, loss scaling skips steps whose gradients are not finite."""

    def __init__(self, trainer: CheckedTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.fp16:
            self._trainer.check_gradients()


class _KeepConversations:
    """A collator whose batches also hold their conversations."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        return {**self._collator(conversations), _CONVERSATIONS: list(conversations)}


def last_finite_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """Return the latest checkpoint in `folder`, `before` a step, whose adapter has only finite weights, or None."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for step, path in reversed(numbered_folders(folder, CHECKPOINT)):
        if before is not None and step >= before:
            continue
        try:
            weights = load_file(path / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError):
            # An incomplete checkpoint, which training does not resume from either.
            continue
        if all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            return path
    return None


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's random generators, of the CPU and of a CUDA device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore_random_states(states: Sequence[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
