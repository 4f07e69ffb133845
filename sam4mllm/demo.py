"""The demo: every stage on generated data and the embedded models, by the same code as any other run.

    generated data -> targets -> base model's answers -> LoRA training -> tuned model's answers -> scores, drawings

An interrupted demo is resumed from where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sam4mllm.data.masks import decode
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.report import text_table
from sam4mllm.evaluation.score import Scores, score_predictions
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.training.dataset import spread
from sam4mllm.training.trainer import train
from sam4mllm.utils.progress import bar

RECIPE = "shapes_ppg"
TRAINING_SCENES = 160
HELD_OUT_SCENES = 40
DATASETS = ("refcoco", "grefcoco", "reasonseg")
PQPP = "pqpp"
"""The row that the full demo adds to the table: the same base model, trained on the same data by the other method."""
DRAWINGS = "drawings"
_DRAWN_PER_DATASET = 4

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


class _Stages:
    """The stages of the demo: prints the number and description of each, and measures its time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Print `description` and record the seconds of the block as `name`."""
        print(f"[{len(self.seconds) + 1}/{self.count}] {description}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run_demo(output: Path, *, full: bool = False) -> dict[str, dict[str, Scores]]:
    """Run the demo in the folder `output` and print its table.

    Args:
        output: The folder of everything that is written; a demo that was interrupted there is resumed.
        full: Also train PQPP, in `output`/pqpp, and evaluate it.

    Returns:
        The scores by model (a row of the table: base, tuned, with `full` also pqpp, oracle) and data set. The oracle
        reproduces the targets of the held-out data: SAM is prompted with them directly.
    """
    stages = _Stages(9 if full else 7)
    root, predictions = output / "shapes", output / "predictions"
    recipe = demo_recipe(output)
    scenes = TRAINING_SCENES + 2 * HELD_OUT_SCENES
    with stages.stage("data", f"generate {scenes} scenes in the formats of RefCOCO, gRefCOCO and ReasonSeg"):
        if not root.is_dir():
            with bar("scenes", scenes) as advance:
                write_dataset(root, scenes=TRAINING_SCENES, held_out=HELD_OUT_SCENES, seed=recipe.seed, advance=advance)
        held_out = {name: read_dataset(name, root, "val") for name in DATASETS}
        all_held_out = [sample for samples in held_out.values() for sample in samples]
    segmenter = load_segmenter(recipe.segmenter.checkpoint)
    settings = TargetSettings.from_recipe(recipe)
    with stages.stage("targets", "choose the points of the training targets with SAM"):
        compute_targets(read_mixture(recipe.data, recipe.seed).samples, segmenter, settings, recipe.targets.store)
        targets = compute_targets(all_held_out, segmenter, settings, recipe.targets.store).read()
    scores: dict[str, dict[str, Scores]] = {}
    with stages.stage("base", "evaluate the base model, which generates boxes and no points"):
        scores["base"] = _evaluate(Pipeline.from_pretrained(recipe.model.base), held_out, predictions / "base")
    with stages.stage("train", "fine-tune it with LoRA on boxes and points"):
        run = train(recipe)
    with stages.stage("tuned", "evaluate the tuned model"):
        scores["tuned"] = _evaluate(Pipeline.from_pretrained(run.path), held_out, predictions / "tuned")
    if full:
        with stages.stage("train_pqpp", "fine-tune the base model for PQPP: yes or no to candidate points"):
            other = train(demo_recipe(output, f"method.name={PQPP}", f"output={json.dumps(str(output / PQPP))}"))
        with stages.stage(PQPP, "evaluate the PQPP model"):
            scores[PQPP] = _evaluate(Pipeline.from_pretrained(other.path), held_out, predictions / PQPP)
    with stages.stage("oracle", "prompt SAM with the targets of the held-out data"):
        scores["oracle"] = {}
        with bar("oracle", len(all_held_out), unit="phrases") as advance:
            for name, samples in held_out.items():
                lines = oracle_predictions(samples, targets, run.method, segmenter, advance=advance)
                scores["oracle"][name] = score_predictions(lines, samples, dataset=name, split="val")
    with stages.stage(DRAWINGS, "draw ground truth, base and tuned side by side"):
        _draw(held_out, predictions, output / DRAWINGS)
    record = {model: {name: each.to_json() for name, each in by_set.items()} for model, by_set in scores.items()}
    (output / "scores.json").write_text(json.dumps({**record, "seconds": stages.seconds}, indent=2) + "\n", "utf-8")
    print("\n" + "\n".join(table(scores)))
    first = held_out["refcoco"][0]
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
    """Return the lines of the table: one row per model, in percent."""
    rows = []
    for model, by_dataset in scores.items():
        figures = [getattr(by_dataset[dataset], field) for _, dataset, field in _COLUMNS]
        queries = sum(each.n for each in by_dataset.values())
        malformed = sum(each.malformed for each in by_dataset.values())
        cells = ["-" if figure is None else f"{100 * figure:.1f}" for figure in figures]
        rows.append([model, *cells, f"{100 * malformed / queries:.1f}", ""])
    return text_table(["", *(title for title, _, _ in _COLUMNS), "malformed", ""], rows)


def _evaluate(pipeline: Pipeline, held_out: Mapping[str, Sequence[Sample]], output: Path) -> dict[str, Scores]:
    """Predict and score each data set; the predictions go to a subfolder of `output` each."""
    scores = {}
    with bar("predict", sum(map(len, held_out.values())), unit="phrases") as advance:
        for name, samples in held_out.items():
            summary = predict(pipeline, queries_of(samples), output / name, advance=advance)
            scores[name] = score_predictions(read_predictions(summary.predictions), samples, dataset=name, split="val")
    return scores


def _draw(held_out: Mapping[str, Sequence[Sample]], predictions: Path, output: Path) -> None:
    """Draw a few phrases of each data set as panels, and all panels on one sheet."""
    from sam4mllm.data.images import load_image
    from sam4mllm.viz.drawing import contact_sheet, overlay, panels

    output.mkdir(parents=True, exist_ok=True)
    sheet = []
    for name, samples in held_out.items():
        lines = {model: _lines_by_id(predictions / model / name) for model in ("base", "tuned")}
        for number, sample in enumerate(spread(samples, _DRAWN_PER_DATASET)):
            image = load_image(sample.image)
            parts = [(overlay(image, [item.mask() for item in sample.objects]), "truth")]
            for model, by_id in lines.items():
                line = by_id[sample.id]
                masks = [decode(item.segmentation) for item in line.objects]
                prompts = [item.prompt for item in line.objects if item.prompt is not None]
                parts.append((overlay(image, masks, prompts), model if line.objects else f"{model}: {line.status}"))
            panel = panels(parts, f"{sample.phrase}\n{lines['tuned'][sample.id].answer}")
            panel.save(output / f"{name}-{number}.png")
            sheet.append(panel)
    contact_sheet(sheet, columns=2).save(output / "sheet.png")


def _lines_by_id(folder: Path) -> dict[str, PredictionLine]:
    return {line.id: line for line in read_predictions(folder / "predictions.jsonl")}
