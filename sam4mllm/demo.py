"""The demo: the whole way on what travels with the package, by the very code of any real run.

    shapes on disk -> targets -> base model's answers -> LoRA training -> tuned model's answers -> scores, images

A demo that was stopped goes on where it was. This module only calls the stages; it knows none of their work.
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
from sam4mllm.data.registry import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.evaluate.report import text_table
from sam4mllm.evaluate.score import Scores, score
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.train.dataset import spread
from sam4mllm.train.trainer import train
from sam4mllm.utils.progress import bar

RECIPE = "shapes_ppg"
TRAINING_SCENES = 160
HELD_OUT_SCENES = 40
DATASETS = ("refcoco", "grefcoco", "reasonseg")
MODELS = ("base", "tuned", "ceiling")
PQPP = "pqpp"
"""The row that the full demo has beside those: the same base on the same data, taught the other method."""
_IMAGES_OF_EACH = 4

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
    """Says which of `count` stages is on, and keeps how long each took."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, says: str) -> Iterator[None]:
        print(f"[{len(self.seconds) + 1}/{self.count}] {says}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run_demo(output: Path, *, full: bool = False) -> dict[str, dict[str, Scores]]:
    """Run the demo into the folder `output` and print its table; returns the scores by model and data set.

    The `full` one also trains and asks PQPP, in `output`/pqpp.
    """
    stages = _Stages(9 if full else 7)
    root = output / "shapes"
    recipe = demo_recipe(output)
    with stages.stage("data", f"writes {TRAINING_SCENES + 2 * HELD_OUT_SCENES} scenes in the real formats"):
        if not root.is_dir():
            with bar("scenes", TRAINING_SCENES + 2 * HELD_OUT_SCENES) as advance:
                write_dataset(root, scenes=TRAINING_SCENES, held_out=HELD_OUT_SCENES, seed=recipe.seed, advance=advance)
        held_out = {name: read_dataset(name, root, "val") for name in DATASETS}
        everything = [sample for samples in held_out.values() for sample in samples]
    segmenter = load_segmenter(recipe.segmenter.checkpoint)
    settings = TargetSettings.from_recipe(recipe)
    with stages.stage("targets", "SAM chooses the points to teach"):
        compute_targets(read_mixture(recipe.data, recipe.seed).samples, segmenter, settings, recipe.targets.store)
        targets = compute_targets(everything, segmenter, settings, recipe.targets.store).read()
    predictions = output / "predictions"
    scores: dict[str, dict[str, Scores]] = {}
    with stages.stage("base", "asks the base model, which knows boxes and no points"):
        scores["base"] = _answers(Pipeline.from_pretrained(recipe.model.base), held_out, predictions / "base")
    with stages.stage("train", "tunes it with LoRA on the points"):
        run = train(recipe)
    with stages.stage("tuned", "asks the tuned model"):
        scores["tuned"] = _answers(Pipeline.from_pretrained(run.path), held_out, predictions / "tuned")
    if full:
        with stages.stage("train_pqpp", "tunes the base model once more, to say yes or no to points"):
            other = train(demo_recipe(output, f"method.name={PQPP}", f"output={json.dumps(str(output / PQPP))}"))
        with stages.stage(PQPP, "asks that model"):
            scores[PQPP] = _answers(Pipeline.from_pretrained(other.path), held_out, predictions / PQPP)
    with stages.stage("ceiling", "prompts SAM with the held-out targets themselves"):
        scores["ceiling"] = {}
        with bar("ceiling", len(everything), unit="phrases") as advance:
            for name, samples in held_out.items():
                lines = oracle_predictions(samples, targets, run.method, segmenter, advance=advance)
                scores["ceiling"][name] = score(lines, samples, dataset=name, split="val")
    with stages.stage("images", "draws truth, base and tuned side by side"):
        _draw(held_out, predictions, output / "images")
    record = {model: {name: each.to_json() for name, each in by_set.items()} for model, by_set in scores.items()}
    (output / "scores.json").write_text(json.dumps({**record, "seconds": stages.seconds}, indent=2) + "\n", "utf-8")
    print("\n" + "\n".join(table(scores)))
    first = held_out["refcoco"][0]
    print(
        f"\n{sum(stages.seconds.values()):.0f} s. Scores: {output / 'scores.json'}. Images: {output / 'images'}. "
        f"Now try:\n  sam4mllm segment {output} {first.image} {first.phrase!r} -o out.png"
    )
    return scores


def demo_recipe(output: Path, *changes: str) -> Recipe:
    """The demo's recipe with all that it reads and writes under `output`, and `changes` (key=value) to it."""
    data = [f"data.train.{index}.root" for index in range(len(load_recipe(RECIPE).data.train))]
    places = dict.fromkeys([*data, "data.validation.root"], output / "shapes")
    places |= {"targets.store": output / "targets", "output": output}
    # Values of overrides are YAML; quoted, a folder named "2024" or "a #1" stays what it is.
    return load_recipe(RECIPE, [f"{key}={json.dumps(str(place))}" for key, place in places.items()] + [*changes])


def table(scores: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """The lines of the table: a row a model, in percent."""
    rows = []
    for model, by_dataset in scores.items():
        figures = [getattr(by_dataset[dataset], field) for _, dataset, field in _COLUMNS]
        asked = sum(each.n for each in by_dataset.values())
        malformed = sum(each.malformed for each in by_dataset.values())
        cells = ["-" if figure is None else f"{100 * figure:.1f}" for figure in figures]
        rows.append([model, *cells, f"{100 * malformed / asked:.1f}", ""])
    return text_table(["", *(title for title, _, _ in _COLUMNS), "malformed", ""], rows)


def _answers(pipeline: Pipeline, held_out: Mapping[str, Sequence[Sample]], output: Path) -> dict[str, Scores]:
    """The scores of a pipeline on each data set; its predictions go into folders of `output`."""
    scores = {}
    with bar("answers", sum(map(len, held_out.values())), unit="phrases") as advance:
        for name, samples in held_out.items():
            summary = predict(pipeline, queries_of(samples), output / name, advance=advance)
            scores[name] = score(read_predictions(summary.predictions), samples, dataset=name, split="val")
    return scores


def _draw(held_out: Mapping[str, Sequence[Sample]], predictions: Path, output: Path) -> None:
    """A few phrases of each data set as panels, and all of them on one sheet."""
    from sam4mllm.data.images import load_image
    from sam4mllm.viz.drawing import contact_sheet, overlay, panels

    output.mkdir(parents=True, exist_ok=True)
    sheet = []
    for name, samples in held_out.items():
        shown = spread(samples, _IMAGES_OF_EACH)
        lines = {model: _lines_by_id(predictions / model / name) for model in ("base", "tuned")}
        for number, sample in enumerate(shown):
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
