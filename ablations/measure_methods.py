"""Experiment "methods": train each method and measure it on held-out scenes, for one seed of data and training."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from methods_rows import ORACLE, Lines, Row, measure

from sam4mllm.data.predictions import Query, queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.errors import PredictionsError, RecipeError
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.pipeline.baselines import predict_from_boxes
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import Recipe, TrainingSection
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.trainer import train
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.progress import Advance, bar

if TYPE_CHECKING:
    from transformers import TrainerCallback

DESCRIPTION = """Compare the methods: one base, equal training steps, scored on held-out scenes, over several seeds.

Each seed has its own generated scenes and its own trainings. Rows: the base model without training; the same training
with questions for boxes only; PPG; PPG without its points (SAM gets the boxes of the same answers); PPG with groups of
points that SAM did not select; PQPP with lists of points and with one point per question, with and without its points;
the oracle (SAM gets the targets of the held-out objects).

Figures are means and sample standard deviations over the seeds. A second table has differences of two rows of one seed:
mean, standard deviation, and how many seeds have the sign of the mean. The seconds per query are left out where an
earlier, interrupted start generated a part of the answers.
"""

BASE = "base"
BOX_ALONE = "box alone"
PPG = "PPG"

# Where SAM selects nothing, only the group that is trained on is sampled and scored.
_ONE_GROUP = ("targets.groups=1", "targets.keep=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    BOX_ALONE: ("method.positives=0", "method.negatives=0", *_ONE_GROUP),
    PPG: (),
    "PPG, random group": ("targets.choose=random", *_ONE_GROUP),
    "PQPP": ("method.name=pqpp",),
    "PQPP, single": ("method.name=pqpp", "method.form=single"),
}
"""The rows that are trained, and the settings in which they differ."""

WITHOUT_POINTS = {f"{name} without its points": name for name in (PPG, "PQPP", "PQPP, single")}
"""The rows whose masks are those of another row's boxes, without its points."""

ROWS = (
    BASE,
    BOX_ALONE,
    PPG,
    "PPG without its points",
    "PPG, random group",
    "PQPP",
    "PQPP without its points",
    "PQPP, single",
    "PQPP, single without its points",
    ORACLE,
)
"""All rows, in the order of the table."""

SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "val": {"refcoco": ("val",), "grefcoco": ("val",), "reasonseg": ("val",)},
    "test": {"refcoco": ("testA", "testB"), "grefcoco": ("testA", "testB"), "reasonseg": ("test",)},
}
"""The splits of each data set that are scored together, by the value of --split."""


def parse_names(text: str) -> tuple[str, ...]:
    """Return the rows that --only names, in the order of the table; a comma before a space is part of a name.

    Raises:
        RecipeError: A name is not one of `ROWS`.
    """
    names = re.split(r",(?!\s)", text)
    if unknown := [name for name in names if name not in ROWS]:
        raise RecipeError(
            f"--only: unknown row {unknown[0]!r}; separate names by a comma without a space. The rows are: "
            + "; ".join(ROWS)
        )
    return tuple(name for name in ROWS if name in names)


@dataclass
class SeedExperiment:
    """The rows of one seed; everything that is computed is kept below `folder`, from where it is resumed.

    recipes: the recipe of each of `VARIANTS`; they share data, steps and the seed.
    samples: the held-out samples of each data set.
    split: their name in `SPLITS`.
    """

    seed: int
    recipes: Mapping[str, Recipe]
    samples: Mapping[str, Sequence[Sample]]
    split: str
    folder: Path
    device: str

    def row(self, name: str) -> Row:
        """Return the figures of a row, which are computed unless an earlier start has written them."""
        source = self.folder_of(name)
        file = source / f"{self._suffixed(name)}.json"
        if file.is_file():
            return Row(**json.loads(file.read_text(encoding="utf-8")))
        print(f"seed {self.seed}, {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        lines, seconds = self._predictions(name, source / self._suffixed(name))
        row = measure(lines, self.samples, seconds)
        source.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(asdict(row), indent=2) + "\n")
        ciou = "-" if row.res_ciou is None else f"{100 * row.res_ciou:.1f}"
        passed = time.perf_counter() - start
        print(f"seed {self.seed}, {name}: RES cIoU {ciou}, {passed:.0f} s", file=sys.stderr, flush=True)
        return row

    @cached_property
    def base(self) -> Pipeline:
        """The untouched base model, which is asked for boxes alone, and the recipe's segmenter."""
        recipe = self.recipes[BOX_ALONE]
        pipeline = Pipeline.from_pretrained(
            recipe.model.base,
            device=self.device,
            dtype=recipe.model.dtype,
            segmenter=load_segmenter(recipe.segmenter.checkpoint, self.device, recipe.segmenter.dtype),
            method=recipe.method.model_dump(),
            batch_size=recipe.generation.batch_size,
        )
        pipeline.max_new_tokens = recipe.generation.max_new_tokens
        return pipeline

    def folder_of(self, name: str) -> Path:
        """Return the folder of a row and of the rows that are derived from it; it is the run folder of a trained row.

        Its name has a digest of the base model's and the segmenter's weights and of the recipe, since others give
        other rows. The digest of a row without training does not depend on the number of steps.
        """
        name = WITHOUT_POINTS.get(name, name)
        recipe = self.recipes.get(name)
        if recipe is None:
            untrained = self.recipes[BOX_ALONE if name == BASE else PPG]
            recipe = untrained.model_copy(update={"training": TrainingSection()})
        digest = hashlib.sha256(json.dumps([self._base_identity, recipe.hash()]).encode()).hexdigest()
        return self.folder / f"{name.replace(',', '').replace(' ', '-')}-{digest[:12]}"

    @cached_property
    def _base_identity(self) -> object:
        # The weights are read completely for it.
        return self.base.identity

    def _suffixed(self, name: str) -> str:
        """Return the name of the row's files in `folder_of`."""
        return f"{self.split}-without-points" if name in WITHOUT_POINTS else self.split

    def _predictions(self, name: str, output: Path) -> tuple[Lines, float | None]:
        """Return the predictions of a row, and the seconds per query where they are measured."""
        if name in WITHOUT_POINTS:
            answers = self._finished(WITHOUT_POINTS[name])
            return self._jobs(
                output,
                lambda dataset, queries, folder, advance: predict_from_boxes(
                    self.base, queries, answers[dataset], folder, advance=advance
                ),
            ), None
        if name == ORACLE:
            return self._oracle(), None
        pipeline = self.base if name == BASE else self._trained(name)
        is_new, start = not output.exists(), time.perf_counter()
        lines = self._jobs(
            output, lambda _, queries, folder, advance: predict(pipeline, queries, folder, advance=advance)
        )
        seconds = (time.perf_counter() - start) / sum(map(len, lines.values()))
        return lines, seconds if is_new else None

    def training_callbacks(self, name: str) -> Sequence[TrainerCallback]:
        """Return further callbacks of a row's training."""
        return ()

    def _trained(self, name: str) -> Pipeline:
        """Train a row's recipe to the end, and load its run."""
        from sam4mllm.training.callbacks import ProgressCallback

        recipe = self.recipes[name].model_copy(update={"output": self.folder_of(name)})
        # On a terminal, transformers shows a bar.
        steps = recipe.training.arguments["max_steps"]
        with bar("train", steps, unit="steps", shown=not sys.stderr.isatty()) as advance:
            run = train(
                recipe, device=self.device, callbacks=[ProgressCallback(advance), *self.training_callbacks(name)]
            )
        return Pipeline.from_pretrained(run.path, device=self.device)

    def _finished(self, name: str) -> Lines:
        """Return the predictions of another row, which is measured first if it is not yet."""
        self.row(name)
        folder = self.folder_of(name) / self._suffixed(name)
        return {dataset: list(read_predictions(folder / dataset / "predictions.jsonl")) for dataset in self.samples}

    def _jobs(self, output: Path, job: Callable[[str, Sequence[Query], Path, Advance], BatchSummary]) -> Lines:
        """Run a batch job for each data set in a subfolder of `output`, and read its predictions.

        Raises:
            PredictionsError: Queries have the status "error", which would be scored like wrong answers.
        """
        lines: Lines = {}
        for dataset, samples in self.samples.items():
            with bar(dataset, len(samples), unit="phrases") as advance:
                summary = job(dataset, queries_of(samples), output / dataset, advance)
            if summary.error:
                raise PredictionsError(f'{summary.predictions}: {summary.error} queries have the status "error"')
            lines[dataset] = list(read_predictions(summary.predictions))
        return lines

    def _oracle(self) -> Lines:
        """Prompt SAM with the targets of the held-out objects, which are chosen as in PPG's training."""
        recipe = self.recipes[PPG]
        samples = [sample for each in self.samples.values() for sample in each]
        settings, segmenter = TargetSettings.from_recipe(recipe), self.base.segmenter
        targets = compute_targets(samples, segmenter, settings, recipe.targets.store).read()
        method = method_of_recipe(recipe)
        with bar(ORACLE, len(samples), unit="phrases") as advance:
            return {
                dataset: list(oracle_predictions(each, targets, method, segmenter, advance=advance))
                for dataset, each in self.samples.items()
            }
