"""The demo: every stage on generated data and the embedded models, by the same code as any other run.

    generated data -> targets -> base model's answers -> LoRA training -> tuned model's answers -> scores, drawings

An interrupted demo is resumed from where it stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.comparison import choose_decided_by_points, draw_comparison
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.evaluation.points import pooled_share
from sam4mllm.evaluation.report import text_table
from sam4mllm.evaluation.score import ScoredPredictions, Scores, score_sentences
from sam4mllm.methods.base import Method, PromptTarget
from sam4mllm.pipeline.baselines import BOX, predict_from_boxes
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.file_names import PREDICTIONS, SCORES
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.dataset import spread
from sam4mllm.training.trainer import train
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.progress import Advance, bar

RECIPE = "shapes_ppg"
TRAINING_SCENES = 160
HELD_OUT_SCENES = 40
DATASETS = ("refcoco", "grefcoco", "reasonseg")
BASE, TUNED, BOX_ALONE, ORACLE = "base", "tuned", "box alone", "oracle"
"""The rows of the table; `BOX_ALONE` has the boxes of the tuned model's answers, without their points."""
PQPP, PQPP_BOX_ALONE = "pqpp", "pqpp, box alone"
"""The rows that the full demo adds: the same base model, trained on the same data by the other method."""
_ANSWERS_OF = {BOX_ALONE: TUNED, PQPP_BOX_ALONE: PQPP}
"""The row whose boxes are used, for each row of boxes alone."""
DRAWINGS = "drawings"
_DECIDED_BY_POINTS, _OTHERS_PER_DATASET = 6, 2
"""The number of drawn phrases for which points decide, and of others per data set, which show failures as well."""

# What the table shows: title, data set, field of Scores.
_COLUMNS = (
    ("RES cIoU", "refcoco", "ciou"),
    ("RES Acc@0.5", "refcoco", "acc_50"),
    ("gRES cIoU", "grefcoco", "ciou"),
    ("gRES gIoU", "grefcoco", "giou"),
    ("gRES N-acc", "grefcoco", "n_acc"),
    ("Reason cIoU", "reasonseg", "ciou"),
    ("Reason gIoU", "reasonseg", "giou"),
)
_LEGEND = """\
Percent, on held-out scenes. Box alone: SAM is prompted with the boxes of the same answers, without the points. Oracle:
SAM is prompted with the training targets of the held-out data. Points on, off: the positive points on the object and
the negative points off it, where the predicted box is right."""

_ByDataset = dict[str, ScoredPredictions]


class _Stages:
    """The stages of the demo: prints the number and description of each, and measures its time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, description: str, phrases: int = 0) -> Iterator[Advance]:
        """Print `description`, record the seconds of the block as `name`, and show its progress in `phrases`."""
        print(f"[{len(self.seconds) + 1}/{self.count}] {description}", flush=True)
        start = time.perf_counter()
        with bar(name, phrases, unit="phrases", shown=phrases > 0) as advance:
            yield advance
        self.seconds[name] = round(time.perf_counter() - start, 1)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """The held-out samples by data set, the segmenter of all models, and the folder of the predictions."""

    samples: Mapping[str, Sequence[Sample]]
    segmenter: Segmenter
    predictions: Path

    @property
    def all_samples(self) -> list[Sample]:
        return [sample for samples in self.samples.values() for sample in samples]

    def load(self, model: str | Path) -> Pipeline:
        """Load a model with the segmenter of all rows, which embeds each image once."""
        pipeline = Pipeline.from_pretrained(model)
        # Given to `from_pretrained`, it would replace the run's own segmenter and so drop the run's calibration.
        pipeline.segmenter = self.segmenter
        return pipeline

    def predict(self, pipeline: Pipeline, row: str, advance: Advance) -> _ByDataset:
        """Answer all phrases for a row of the table, and score the masks."""
        for name, samples in self.samples.items():
            predict(pipeline, queries_of(samples), self._folder(row, name), advance=advance)
        return {name: self._score(self._lines(row, name), name) for name in self.samples}

    def predict_from_boxes(self, pipeline: Pipeline, row: str, advance: Advance) -> _ByDataset:
        """Prompt SAM with the boxes of existing answers, for a row of `_ANSWERS_OF`, and score the masks."""
        for name, samples in self.samples.items():
            answers = self._lines(_ANSWERS_OF[row], name)
            predict_from_boxes(pipeline, queries_of(samples), answers, self._folder(row, name), advance=advance)
        return {name: self._score(self._lines(row, name), name) for name in self.samples}

    def predict_from_targets(self, targets: Mapping[str, PromptTarget], method: Method, advance: Advance) -> _ByDataset:
        """Prompt SAM with the training targets, and score the masks."""
        return {
            name: self._score(oracle_predictions(samples, targets, method, self.segmenter, advance=advance), name)
            for name, samples in self.samples.items()
        }

    def lines_by_id(self, row: str) -> dict[str, PredictionLine]:
        """Return the predictions of a row for all data sets, by id."""
        return {line.id: line for name in self.samples for line in self._lines(row, name)}

    def _lines(self, row: str, name: str) -> Iterator[PredictionLine]:
        return read_predictions(self._folder(row, name) / PREDICTIONS)

    def _folder(self, row: str, name: str) -> Path:
        """Return the folder of a row's predictions for a data set, in the layout of `evaluation.splits`."""
        if row in _ANSWERS_OF:
            return self.predictions / _ANSWERS_OF[row] / name / f"baseline-{BOX}"
        return self.predictions / row / name

    def _score(self, lines: Iterable[PredictionLine], name: str) -> ScoredPredictions:
        return score_sentences(lines, self.samples[name], dataset=name, split="val")


def run_demo(output: Path, *, full: bool = False) -> dict[str, dict[str, Scores]]:
    """Run the demo in the folder `output` and print its table.

    Args:
        output: The folder of everything that is written; a demo that was interrupted there is resumed.
        full: Also train PQPP, in `output`/pqpp, and evaluate it.

    Returns:
        The scores by row of the table and data set. The rows are base, tuned, box alone, with `full` also pqpp and
        "pqpp, box alone", and oracle, which reproduces the targets of the held-out data: SAM is prompted with them.
    """
    stages = _Stages(11 if full else 8)
    recipe = demo_recipe(output)
    scenes = TRAINING_SCENES + 2 * HELD_OUT_SCENES
    with stages.stage("data", f"generate {scenes} scenes in the formats of RefCOCO, gRefCOCO and ReasonSeg"):
        samples = _held_out_samples(output / "shapes", recipe.seed)
    segmenter = load_segmenter(recipe.segmenter.checkpoint, resolve_device("auto"), recipe.segmenter.dtype)
    held_out = _HeldOut(samples, EmbeddingCache(segmenter, HELD_OUT_SCENES), output / "predictions")
    phrases, settings = len(held_out.all_samples), TargetSettings.from_recipe(recipe)
    with stages.stage("targets", "choose the points of the training targets with SAM"):
        compute_targets(read_mixture(recipe.data, recipe.seed).samples, segmenter, settings, recipe.targets.store)
        store = compute_targets(held_out.all_samples, held_out.segmenter, settings, recipe.targets.store)
        targets = store.read()
    scored: dict[str, _ByDataset] = {}
    with stages.stage(BASE, "evaluate the base model, which generates boxes and no points", phrases) as advance:
        scored[BASE] = held_out.predict(held_out.load(recipe.model.base), BASE, advance)
    with stages.stage("train", "fine-tune it with LoRA on boxes and points"):
        run = _train(recipe)
    scored |= _evaluate_run(stages, held_out, run, BOX_ALONE)
    if full:
        with stages.stage("train_pqpp", "fine-tune the base model for PQPP: yes or no to candidate points"):
            other = _train(demo_recipe(output, f"method.name={PQPP}", f"output={json.dumps(str(output / PQPP))}"))
        scored |= _evaluate_run(stages, held_out, other, PQPP_BOX_ALONE)
    with stages.stage(ORACLE, "prompt SAM with the targets of the held-out data", phrases) as advance:
        scored[ORACLE] = held_out.predict_from_targets(targets, run.method, advance)
    with stages.stage(DRAWINGS, "draw ground truth and answers, with and without points, side by side"):
        _draw(held_out, scored, output / DRAWINGS)
    scores = {row: {name: each.scores for name, each in by_dataset.items()} for row, by_dataset in scored.items()}
    record = {row: {name: each.to_json() for name, each in by_dataset.items()} for row, by_dataset in scores.items()}
    atomic_write_text(output / SCORES, json.dumps({**record, "seconds": stages.seconds}, indent=2) + "\n")
    print("\n" + "\n".join(table(scores)) + f"\n\n{_LEGEND}")
    first = samples["refcoco"][0]
    if run.calibration is not None and (note := run.calibration.note()):
        print(f"\nScores of predictions: {note}.")
    print(
        f"\n{sum(stages.seconds.values()):.0f} s. Scores: {output / 'scores.json'}. Drawings: {output / DRAWINGS}. "
        f"Now try:\n  sam4mllm segment {output} {first.image} {first.phrase!r} -o out.png"
    )
    return scores


def demo_recipe(output: Path, *overrides: str) -> Recipe:
    """Return the demo's recipe with all its files and folders in `output`, changed by `overrides` (key=value)."""
    data = [f"data.train.{index}.root" for index in range(len(load_recipe(RECIPE).data.train))]
    paths = dict.fromkeys([*data, "data.validation.root"], output / "shapes")
    paths |= {"targets.store": output / "targets", "output": output}
    # Values of overrides are YAML. In quotes a folder named "2024" stays a string, and "a #1" has no comment.
    return load_recipe(RECIPE, [f"{key}={json.dumps(str(path))}" for key, path in paths.items()] + [*overrides])


def table(scores: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Return the lines of the table: one row per model, in percent.

    The shares of points and of malformed answers are over all data sets.
    """
    rows = []
    for row, by_dataset in scores.items():
        figures = [getattr(by_dataset[dataset], field) for _, dataset, field in _COLUMNS]
        every = list(by_dataset.values())
        figures.append(pooled_share([(each.points_on, each.positive_points) for each in every]))
        figures.append(pooled_share([(each.points_off, each.negative_points) for each in every]))
        figures.append(sum(each.malformed for each in every) / sum(each.n for each in every))
        rows.append([row, *("-" if figure is None else f"{100 * figure:.1f}" for figure in figures), ""])
    return text_table(["", *(title for title, _, _ in _COLUMNS), "points on", "points off", "malformed", ""], rows)


def _held_out_samples(root: Path, seed: int) -> dict[str, list[Sample]]:
    """Write the data set unless it exists, and return the samples of its validation split by data set."""
    if not root.is_dir():
        with bar("scenes", TRAINING_SCENES + 2 * HELD_OUT_SCENES) as advance:
            write_dataset(root, scenes=TRAINING_SCENES, held_out=HELD_OUT_SCENES, seed=seed, advance=advance)
    return {name: read_dataset(name, root, "val") for name in DATASETS}


def _train(recipe: Recipe) -> RunFolder:
    """Train a recipe; without a terminal, where transformers shows no bar, lines show the number of steps."""
    from sam4mllm.training.callbacks import ProgressCallback

    steps = recipe.training.arguments["max_steps"]
    with bar("train", steps, unit="steps", shown=not sys.stderr.isatty()) as advance:
        return train(recipe, callbacks=[ProgressCallback(advance)])


def _evaluate_run(stages: _Stages, held_out: _HeldOut, run: RunFolder, box_row: str) -> dict[str, _ByDataset]:
    """Evaluate a tuned model, then SAM with the boxes of its answers alone; the model answers once."""
    row, phrases = _ANSWERS_OF[box_row], len(held_out.all_samples)
    with stages.stage(row, f"evaluate the tuned model, {run.method.name.upper()}", phrases) as advance:
        pipeline = held_out.load(run.path)
        answers = held_out.predict(pipeline, row, advance)
    with stages.stage(box_row, "prompt SAM with the boxes of the same answers, without the points", phrases) as advance:
        return {row: answers, box_row: held_out.predict_from_boxes(pipeline, box_row, advance)}


def _draw(held_out: _HeldOut, scored: Mapping[str, _ByDataset], output: Path) -> None:
    """Draw the answers to phrases for which points decide, and to a few others, and all drawings on one sheet."""
    from sam4mllm.viz.drawing import contact_sheet, save_image

    titles = {BASE: BASE, BOX_ALONE: f"{TUNED}, {BOX_ALONE}", TUNED: f"{TUNED} with points"}
    lines = {row: held_out.lines_by_id(row) for row in titles}
    scores = {row: {key: score for each in scored[row].values() for key, score in each.by_id.items()} for row in titles}
    chosen = _choose(held_out, scores[TUNED], scores[BOX_ALONE])
    output.mkdir(parents=True, exist_ok=True)
    sheet = []
    with bar(DRAWINGS, len(chosen)) as advance:
        for name, sample in chosen.items():
            answers = {title: (lines[row][sample.id], scores[row][sample.id]) for row, title in titles.items()}
            drawing = draw_comparison(sample, answers, f"{sample.phrase}\n{lines[TUNED][sample.id].answer}")
            file = output / f"{name}.png"
            save_image(drawing, file)
            sheet.append(drawing)
            advance()
    save_image(contact_sheet(sheet, columns=2), output / "sheet.png")


def _choose(
    held_out: _HeldOut, with_points: Mapping[str, SentenceScore], box_alone: Mapping[str, SentenceScore]
) -> dict[str, Sample]:
    """Choose the phrases to draw, by the names of their files."""
    decided = choose_decided_by_points(held_out.all_samples, with_points, box_alone, _DECIDED_BY_POINTS)
    chosen = {f"points-{number}": sample for number, sample in enumerate(decided)}
    for name, samples in held_out.samples.items():
        others = spread([sample for sample in samples if sample not in decided], _OTHERS_PER_DATASET)
        chosen |= {f"{name}-{number}": sample for number, sample in enumerate(others)}
    return chosen
