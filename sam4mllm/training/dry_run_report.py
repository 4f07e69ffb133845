"""DryRun: the report of a dry run, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sam4mllm.training.dataset import count_text
from sam4mllm.training.preview import ConversationPreview

_MEMORY_LABELS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "activations": "activations",
    "logits": "logits",
    "segmenter": "segmenter",
}


@dataclass(slots=True)
class DryRun:
    """The report of a dry run: the data, the steps, and estimates of memory and time.

    Attributes:
        recipe: The recipe's hash.
        method: The method's settings.
        sets: By data set, how many phrases or chats are `sampled` for an epoch, about how many `images`, and how many
            phrases the leakage filter `removed`.
        validation: Phrases that the run is validated on.
        phrases, regions, captions, chats, without_target, conversations: As in `TrainingSet`.
        targets: Objects whose target is `stored`, those with `placeholders` of the right shape, and those `skipped`.
        shown: Previews of one conversation of each data set.
        tokens: Per conversation: the `mean`, the `longest`, `supervised_mean`, over how many `conversations`, and
            whether they were `counted_by` the processor or estimated from characters.
        steps: Conversations and tokens of an optimizer step; the steps `per_epoch` and in `total`.
        model: `estimate.ModelSize`; None without the model's config, as the three that follow.
        memory: `estimate.Memory`, in bytes of one GPU.
        tflops: The TFLOP/s for which the time is estimated.
        seconds_per_epoch: Time of an epoch, without targets and validation.
        notes: What was not checked, and what may be wrong.
    """

    recipe: str
    method: dict[str, Any]
    sets: list[dict[str, Any]]
    validation: int
    phrases: int
    chats: int
    without_target: int
    conversations: int
    targets: dict[str, int]
    shown: list[ConversationPreview]
    tokens: dict[str, Any]
    steps: dict[str, int]
    model: dict[str, int | None] | None = None
    memory: dict[str, int | None] | None = None
    tflops: float | None = None
    seconds_per_epoch: float | None = None
    notes: list[str] = field(default_factory=list)
    regions: int = 0
    captions: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """Return the report as lines of text: data, previews, training, memory, time and notes."""
        lines = ["Dry run: no weights were loaded, nothing was written.", "", *self._data_lines()]
        for preview in self.shown:
            supervised = "" if preview.supervised is None else f", {preview.supervised} of them supervised"
            lines += [
                "",
                f"{preview.image}: {preview.tokens} tokens{supervised}",
                *(f"  | {line}" for line in preview.text.splitlines()),
            ]
        lines += ["", *self._training_lines()]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def _data_lines(self) -> list[str]:
        lines = ["data of one epoch"]
        for each in self.sets:
            removed = f", {each['removed']} removed by the leakage filter" if each["removed"] else ""
            lines.append(f"  {each['set']}: {each['sampled']:,} about {each['images']:,} images{removed}")
        without = f", {self.without_target:,} phrases without a target" if self.without_target else ""
        counts = count_text(self.phrases, self.regions, self.captions, self.chats)
        lines.append(f"  {counts} in {self.conversations:,} conversations{without}")
        lines.append(f"  validation: {self.validation:,} phrases")
        stored, placeholders = self.targets["stored"], self.targets["placeholders"]
        lines.append(f"  targets: {stored:,} from stores of the same settings, {placeholders:,} placeholders")
        return lines

    def _training_lines(self) -> list[str]:
        tokens, steps = self.tokens, self.steps
        counted = f"counted in {tokens['conversations']} conversations, by {tokens['counted_by']}"
        per_step = f"{steps['conversations_per_step']} conversations and about {steps['tokens_per_step']:,} tokens"
        lines = [
            "training",
            f"  {tokens['mean']:.0f} tokens per conversation, {tokens['longest']} in the longest, {counted}",
            f"  {per_step} per step, {steps['per_epoch']:,} steps per epoch, {steps['total']:,} in total",
        ]
        if self.model is None or self.memory is None or self.seconds_per_epoch is None:
            return lines
        lines.append(f"  {_count(self.model['parameters'])} parameters, {_count(self.model['trained'])} trained")
        lines += ["", "memory of one GPU, estimated"]
        lines += [f"  {label:18}{_size(self.memory[name])}" for name, label in _MEMORY_LABELS.items()]
        lines.append(f"  {'total':18}{_size(self.memory['total'])}, and about a tenth and 1 GiB more for CUDA itself")
        hours = self.seconds_per_epoch / 3600
        time = f"{hours:.1f} hours" if hours >= 0.1 else f"{self.seconds_per_epoch:.0f} seconds"
        lines.append(f"time of one epoch, estimated: {time} at {self.tflops:g} TFLOP/s, without targets and validation")
        return lines


def _size(value: int | None) -> str:
    if value is None:
        return "not known"
    return f"{value / 2**30:8.2f} GiB" if value >= 2**30 else f"{value / 2**20:8.2f} MiB"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.2f} M"
