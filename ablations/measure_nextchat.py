"""Experiment "nextchat": locations as text and as embeddings on one base, for equal steps and for equal seconds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

from measure_methods import BOX_ALONE, PPG, SPLITS, SeedExperiment
from measure_methods import VARIANTS as METHODS
from methods_rows import Lines
from methods_table import Summary, cell, difference_table, differences, plain, summarize
from safetensors import safe_open
from transformers import AutoTokenizer, TrainerCallback

from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.reliability import reliability_report
from sam4mllm.evaluation.score import score_sentences
from sam4mllm.mllm.loading import resolve_base
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.hub import ADAPTER_WEIGHTS

DESCRIPTION = """Compare boxes as text with locations as embeddings: one base, one data set, equal steps or seconds.

Rows: the question for boxes alone; PPG, also with a regression loss of its boxes (training only); PQPP; pix2emb with
SAM prompted by the decoded box, by the embedding or by both, also without the cycle losses. Each method is trained at
the learning rate of its recipe of generated scenes. Each seed has its own generated scenes and trainings. In the second
half of the rows, "equal seconds", each training has as many steps as fit
into the time of PPG's training, by the median seconds a step that were measured with equal steps on the same seed.

Columns: RES cIoU and gIoU, Acc@0.5, generalized cIoU, gIoU and N-acc; the share of malformed answers; the expected
calibration error (ECE) of the uncalibrated scores of objects; tokens of an answer; seconds per query; millions of
trained parameters; steps and seconds per step. A second table has differences of two rows of one seed: mean, standard
deviation, and how many seeds have the sign of the mean.

The seconds per query are left out where an earlier, interrupted start generated a part of the answers; equal seconds
measured beside other work on the machine are not equal.
"""

BASE = "shapes-locations"
"""The base model of the rows by default, which was pre-trained on boxes as text and on location tokens."""

# The rate is that of the recipe shapes_pix2emb: at PPG's, the heads unlearn what the base was pre-trained on.
_PIX2EMB = ("method.name=pix2emb", "training.learning_rate=1e-4")
VARIANTS: dict[str, tuple[str, ...]] = {
    BOX_ALONE: METHODS[BOX_ALONE],
    PPG: (),
    "PPG, box loss": ("method.box_loss=1",),
    "PQPP": ("method.name=pqpp", "method.form=single"),
    "pix2emb, box": (*_PIX2EMB, "method.prompt=box"),
    "pix2emb, embedding": (*_PIX2EMB, "method.prompt=embedding"),
    "pix2emb, both": (*_PIX2EMB, "method.prompt=both"),
    "pix2emb, both, no cycle": (*_PIX2EMB, "method.prompt=both", "method.cycle=false"),
}
"""The rows, and the settings in which they differ."""

TIMED_STEPS = 15
"""The number of steps of the training in which the seconds of a row's step are measured."""

EQUAL_SECONDS = ", equal seconds"
"""The end of the names of rows whose trainings take the time of PPG's."""

DIFFERENCES = (
    *((name, PPG) for name in VARIANTS if name != PPG),
    ("pix2emb, both", "pix2emb, box"),
    ("pix2emb, both", "pix2emb, embedding"),
    ("pix2emb, both", "pix2emb, both, no cycle"),
    (f"pix2emb, both{EQUAL_SECONDS}", PPG),
)
"""The pairs of rows whose difference is computed seed by seed: the first minus the second."""

_TITLES = {
    "res_ciou": "RES cIoU",
    "res_giou": "RES gIoU",
    "res_acc_50": "Acc@0.5",
    "gres_ciou": "gRES cIoU",
    "gres_giou": "gRES gIoU",
    "gres_n_acc": "N-acc",
    "malformed": "malformed",
    "ece": "ECE",
    "answer_tokens": "tokens",
    "seconds_a_query": "s/query",
    "parameters": "M trained",
    "steps": "steps",
    "seconds_a_step": "s/step",
}
# The figures whose differences are computed.
_COMPARED = {
    key: _TITLES[key] for key in ("res_ciou", "res_giou", "res_acc_50", "gres_ciou", "gres_giou", "gres_n_acc")
}
# The figures that are not in percent, with their decimals.
_DECIMALS = {"answer_tokens": 1, "seconds_a_query": 3, "parameters": 3, "steps": 0, "seconds_a_step": 3}


@dataclass(frozen=True)
class NextchatRow:
    """The figures of one row for one seed; shares are fractions, `parameters` are millions.

    `ece` is None if an object has no score.
    """

    res_ciou: float | None
    res_giou: float | None
    res_acc_50: float | None
    gres_ciou: float | None
    gres_giou: float | None
    gres_n_acc: float | None
    malformed: float
    ece: float | None
    answer_tokens: float
    seconds_a_query: float | None
    parameters: float
    steps: int
    seconds_a_step: float


class NextchatExperiment(SeedExperiment):
    """The rows of one seed, with the seconds that a step of their trainings takes."""

    def training_callbacks(self, name: str) -> list[TrainerCallback]:
        return [_StepTimer(self._step_file(name))]

    def seconds_a_step(self, name: str) -> float:
        """Return the median seconds of a step of a row, from a short training unless an earlier start had it."""
        timed = self._with_steps(name, TIMED_STEPS)
        file = timed._step_file(name)
        if not file.is_file():
            timed._trained(name)
        seconds: float = json.loads(file.read_text(encoding="utf-8"))["seconds_a_step"]
        return seconds

    def nextchat_row(self, name: str) -> NextchatRow:
        """Return the figures of a row, which is trained and predicted first unless an earlier start did."""
        lines, measured = self._finished(name), self.row(name)
        folder, recipe = self.folder_of(name), self.recipes[name]
        tokenizer = AutoTokenizer.from_pretrained(resolve_base(recipe.model.base))
        scores, eces = _scores(lines, self.samples)
        texts = [line.answer or "" for each in lines.values() for line in each]
        return NextchatRow(
            **scores,
            malformed=measured.malformed,
            ece=fmean(eces) if eces else None,
            answer_tokens=fmean(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts),
            seconds_a_query=measured.seconds_a_query,
            parameters=_parameters(folder / ADAPTER_WEIGHTS) / 1e6,
            steps=recipe.training.arguments["max_steps"],
            seconds_a_step=self.seconds_a_step(name),
        )

    def with_equal_seconds(self, name: str) -> NextchatExperiment:
        """Return the experiment whose row `name` is trained for the time of PPG's training."""
        steps = self.recipes[name].training.arguments["max_steps"]
        return self._with_steps(name, max(1, round(steps * self.seconds_a_step(PPG) / self.seconds_a_step(name))))

    def _with_steps(self, name: str, steps: int) -> NextchatExperiment:
        """Return the experiment whose row `name` is trained for another number of steps."""
        recipe = self.recipes[name]
        training = type(recipe.training)(**{**recipe.training.model_dump(by_alias=True), "max_steps": steps})
        return replace(self, recipes={**self.recipes, name: recipe.model_copy(update={"training": training})})

    def _step_file(self, name: str) -> Path:
        return self.folder_of(name) / "seconds-a-step.json"


def _scores(lines: Lines, samples: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, Any], list[float]]:
    """Return the metrics of the data sets, and the ECE of each that has scores for all objects."""
    figures: dict[str, Any] = {}
    eces = []
    for dataset, prefix, names in (
        ("refcoco", "res_", ("ciou", "giou", "acc_50")),
        ("grefcoco", "gres_", ("ciou", "giou", "n_acc")),
    ):
        scored = score_sentences(lines[dataset], samples[dataset], dataset=dataset, split="held out")
        figures |= {prefix + name: getattr(scored.scores, name) for name in names}
        objects = reliability_report(lines[dataset], scored).objects
        eces += [] if objects is None else [objects.ece]
    return figures, eces


def _parameters(adapter: Path) -> int:
    """Return the number of values in an adapter's file, which are those that were trained."""
    with safe_open(adapter, "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


class _StepTimer(TrainerCallback):
    """A callback that writes the median seconds of the steps that it has seen."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._start = 0.0
        self._seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds.append(perf_counter() - self._start)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._seconds:
            atomic_write_text(self._file, json.dumps({"seconds_a_step": median(self._seconds)}) + "\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the experiment."""
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each training (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, ... of data and training (default: 3)")
    parser.add_argument("--split", choices=list(SPLITS), default="test", help="default: %(default)s")
    parser.set_defaults(scenes=160, held_out=40)


Rows = Mapping[str, Mapping[int, NextchatRow]]


def summaries(rows: Rows) -> dict[str, dict[str, Summary | None]]:
    """Summarize each figure of each row over the seeds."""
    return {
        name: {key: summarize({seed: getattr(row, key) for seed, row in by_seed.items()}) for key in _TITLES}
        for name, by_seed in rows.items()
    }


def tables(rows: Rows) -> list[str]:
    """Return the figures as a Markdown table, as mean ± standard deviation over the seeds."""
    lines = ["|  | " + " | ".join(_TITLES.values()) + " |", "|---" * (len(_TITLES) + 1) + "|"]
    for name, figures in summaries(rows).items():
        lines.append(
            f"| {name} | " + " | ".join(cell(each, _DECIMALS.get(key)) for key, each in figures.items()) + " |"
        )
    return [*lines, "", *difference_table(rows, DIFFERENCES, _COMPARED)]


def to_json(rows: Rows) -> dict[str, Any]:
    """Return the rows of every seed and their summaries as plain JSON."""
    by_seed = {name: {seed: asdict(row) for seed, row in each.items()} for name, each in rows.items()}
    compared = differences(rows, DIFFERENCES, _COMPARED)
    return {"rows": by_seed, "summaries": plain(summaries(rows)), "differences": plain(compared)}
