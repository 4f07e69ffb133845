"""Experiment "packing": one phrase a conversation, several in turns, or several isolated ones; equal phrases seen."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import methods_table
from measure_methods import BOX_ALONE, SeedExperiment
from measure_methods import VARIANTS as METHODS
from methods_rows import Row
from transformers import TrainerCallback

from sam4mllm.data.mixture import read_mixture
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.training.dataset import make_training_set
from sam4mllm.utils.atomic_io import atomic_write_text

DESCRIPTION = """Compare one phrase a conversation with four in turns and four isolated ones, over several seeds.

Every row sees each phrase of the training split equally often, with about as many phrases in each optimizer step (the
recipe's batch size), and is scored on held-out scenes, where each phrase is asked alone. Figures and differences of two
rows of one seed are those of the experiment "methods"; a third table has the steps and the seconds of the trainings.
"""

ONE, TURNS, ISOLATED = "one phrase", "turns", "isolated"

VARIANTS: dict[str, tuple[str, ...]] = {
    ONE: ("method.phrases=1",),
    TURNS: ("method.phrases=4", "method.packing=turns"),
    ISOLATED: ("method.phrases=4", "method.packing=isolated"),
}
"""The rows, and the settings in which they differ."""

DIFFERENCES = ((ISOLATED, TURNS), (ISOLATED, ONE), (TURNS, ONE))

ALL = {**VARIANTS, BOX_ALONE: METHODS[BOX_ALONE]}
"""The rows, and the variant by which `SeedExperiment` identifies the base model."""


@dataclass(frozen=True)
class Training:
    """One training: conversations and phrases of an epoch, epochs, optimizer steps, and seconds.

    `seconds` are those of the steps and checkpoints; None if the training was interrupted and resumed.
    """

    conversations: int
    phrases: int
    epochs: int
    steps: int
    seconds: float | None


def plan(recipe: Recipe, epochs: int) -> tuple[list[str], Training]:
    """Return the settings with which a recipe sees each phrase `epochs` times, and about equal phrases in each step.

    The recipe's batch size is the number of phrases in a step.
    """
    mixture = read_mixture(recipe.data, recipe.seed)
    # The number of conversations does not depend on the targets.
    targets = {item.id: SimpleNamespace(prompts=[SamPrompt(item.box)]) for s in mixture.samples for item in s.objects}
    training_set = make_training_set(mixture, targets, method_of_recipe(recipe))
    conversations = len(training_set.conversations)
    phrases_a_step = recipe.training.arguments["per_device_train_batch_size"]
    batch = max(1, round(phrases_a_step * conversations / training_set.phrases))
    steps = epochs * -(-conversations // batch)
    settings = [f"training.per_device_train_batch_size={batch}", f"training.max_steps={steps}"]
    return settings, Training(conversations, training_set.phrases, epochs, steps, None)


class PackingExperiment(SeedExperiment):
    """The rows of one seed, whose trainings are timed."""

    def training_callbacks(self, name: str) -> list[TrainerCallback]:
        return [_Stopwatch(self._seconds_file(name))]

    def seconds(self, name: str) -> float | None:
        """Return the seconds of a row's training, None if it was interrupted and resumed."""
        file = self._seconds_file(name)
        return json.loads(file.read_text(encoding="utf-8"))["seconds"] if file.is_file() else None

    def _seconds_file(self, name: str) -> Path:
        return self.folder_of(name) / "training-seconds.json"


class _Stopwatch(TrainerCallback):
    """A callback that writes the seconds of a training that began with its first step."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._start: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter() if state.global_step == 0 else None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._start is not None:
            seconds = time.perf_counter() - self._start
            atomic_write_text(self._file, json.dumps({"seconds": seconds}) + "\n")


def tables(rows: dict[str, dict[int, Row]], trainings: dict[str, dict[int, Training]]) -> list[str]:
    """Return the tables of scores, of differences by seed, and of the trainings, as Markdown."""
    lines = [*methods_table.tables(rows, DIFFERENCES), ""]
    titles = ("", "phrases seen", "phrases/conversation", "steps", "seconds", "phrases/s")
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, by_seed in trainings.items():
        each = list(by_seed.values())
        seconds = [training.seconds for training in each if training.seconds is not None]
        cells = [
            f"{fmean(t.epochs * t.phrases for t in each):.0f}",
            f"{fmean(t.phrases / t.conversations for t in each):.2f}",
            f"{fmean(t.steps for t in each):.0f}",
            f"{fmean(seconds):.1f}" if seconds else "-",
            f"{fmean(t.epochs * t.phrases / t.seconds for t in each if t.seconds is not None):.1f}" if seconds else "-",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def to_json(rows: dict[str, dict[int, Row]], trainings: dict[str, dict[int, Training]]) -> dict[str, Any]:
    """Return rows, differences and trainings of every seed as plain JSON."""
    seen = {name: {seed: asdict(each) for seed, each in by_seed.items()} for name, by_seed in trainings.items()}
    return {**methods_table.to_json(rows, DIFFERENCES), "trainings": seen}
