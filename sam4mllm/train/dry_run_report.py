"""What a dry run found, as text to be read. This module decides nothing."""

from __future__ import annotations

from sam4mllm.train.dry_run import DryRun

_LABELS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "its gradients",
    "moments": "its moments",
    "activations": "activations",
    "logits": "logits",
    "segmenter": "segmenter",
}


def as_text(found: DryRun) -> str:
    """The findings in the order of the data, notes last."""
    lines = ["Dry run: no weights were loaded, nothing was written.", "", "data, in one epoch"]
    for each in found.sets:
        lost = f", {each['left_out']} left out by the leakage guard" if each["left_out"] else ""
        lines.append(f"  {each['set']}: {each['drawn']:,} about {each['images']:,} images{lost}")
    lost = f", {found.without_target:,} phrases without a target" if found.without_target else ""
    counts = f"{found.phrases:,} phrases and {found.chats:,} chats"
    lines.append(f"  {counts} in {found.conversations:,} conversations{lost}")
    lines.append(f"  validation: {found.validation:,} phrases")
    stored, made = found.targets["stored"], found.targets["stand_ins"]
    lines.append(f"  targets: {stored:,} from stores of the same settings, {made:,} stand-ins of the right shape")
    for seen in found.shown:
        learned = "" if seen.learned is None else f", {seen.learned} of them learned"
        lines += [
            "",
            f"{seen.image}: {seen.tokens} tokens{learned}",
            *(f"  | {line}" for line in seen.text.splitlines()),
        ]
    tokens, steps = found.tokens, found.steps
    lines += [
        "",
        "training",
        f"  {tokens['mean']:.0f} tokens a conversation, {tokens['longest']} the longest, of {tokens['looked_at']} "
        f"looked at, by {tokens['counted_by']}",
        f"  {steps['conversations_per_step']} conversations and about {steps['tokens_per_step']:,} tokens a step, "
        f"{steps['per_epoch']:,} steps an epoch, {steps['in_all']:,} in all",
    ]
    if found.model is not None and found.memory is not None and found.seconds_per_epoch is not None:
        lines.append(f"  {_count(found.model['parameters'])} parameters, {_count(found.model['trained'])} trained")
        lines += ["", "memory of one GPU, estimated"]
        lines += [f"  {_LABELS[name]:14}{_size(found.memory[name])}" for name in _LABELS]
        lines.append(f"  {'in all':14}{_size(found.memory['total'])}, and about a tenth and 1 GiB more for CUDA itself")
        hours = found.seconds_per_epoch / 3600
        time = f"{hours:.1f} hours" if hours >= 0.1 else f"{found.seconds_per_epoch:.0f} seconds"
        lines.append(
            f"time of one epoch, estimated: {time} at {found.tflops:g} TFLOP/s, without targets and validation"
        )
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return "\n".join(lines) + "\n"


def _size(value: int | None) -> str:
    if value is None:
        return "not known"
    return f"{value / 2**30:8.2f} GiB" if value >= 2**30 else f"{value / 2**20:8.2f} MiB"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.2f} M"
