"""Compare the methods on `shapes`: one base model, the same data, equal training steps, scored on the test splits.

    python ablations/table_methods.py --work runs/table-methods --steps 200 --json ablations/logs/table_methods.json

Six ways to teach and ask: the box alone; PPG; PPG with groups of points that SAM did not choose; PQPP with lists of
points, and with one point a question; both methods in one model. Each is trained on the train split and calibrated on
the validation split; the figures are of the test splits (testA and testB together), which nothing was chosen on: cIoU
and the calibration error of RefCOCO's objects before (SAM's own guess of its IoU) and after, gIoU and N-acc of
gRefCOCO, gIoU of ReasonSeg, the share of malformed answers and the seconds a query of all three.

Settings of the recipe are given as key=value behind the options. What is done is known from the files in --work, so a
stopped run goes on where it was; seconds are not told of answers that an earlier start began with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from table_data import places

from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluate.reliability import reliability_report
from sam4mllm.evaluate.score import ScoredPredictions, score_sentences
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.calibration import scores_of
from sam4mllm.synthetic.writer import shapes_in
from sam4mllm.train.trainer import train
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries
from sam4mllm.utils.progress import bar

RECIPE = "shapes_ppg"
WAYS: dict[str, tuple[str, ...]] = {
    "box alone": ("method.positives=0", "method.negatives=0"),
    "PPG": (),
    "PPG, random group": ("targets.choose=random",),
    "PQPP, lists": ("method.name=pqpp",),
    "PQPP, single": ("method.name=pqpp", "method.form=single"),
    "both": ("method.name=both",),
}
"""The ways, by their names in the table, and the settings in which they differ."""

TESTS = {"refcoco": ("testA", "testB"), "grefcoco": ("testA", "testB"), "reasonseg": ("test",)}
"""The splits that are scored together, by data set."""


@dataclass(frozen=True)
class Row:
    """One way's figures: fractions from 0 to 1; `ece_before` is of SAM's own guesses as scores, None with no score."""

    res_ciou: float | None
    res_acc_50: float | None
    gres_giou: float | None
    gres_n_acc: float | None
    reason_giou: float | None
    malformed: float
    points_an_object: float
    seconds_a_query: float | None
    ece_before: float | None
    ece_after: float | None


def measure(pipeline: Pipeline, samples: dict[str, list[Sample]], output: Path) -> Row:
    """Asks the pipeline about all samples, with its answers in `output`, and scores them."""
    lines: dict[str, list[PredictionLine]] = {}
    judged: dict[str, ScoredPredictions] = {}
    at_once = not output.exists()
    seconds = 0.0
    for name, each in samples.items():
        start = time.perf_counter()
        with bar(name, len(each), unit="phrases") as advance:
            summary = predict(pipeline, queries_of(each), output / name, advance=advance)
        seconds += time.perf_counter() - start
        lines[name] = list(read_predictions(summary.predictions))
        judged[name] = score_sentences(lines[name], each, dataset=name, split="test")
    everything = [line for each in lines.values() for line in each]
    objects = [item for line in everything for item in line.objects]
    points = sum(len(item.prompt.points) for item in objects if item.prompt is not None)
    after = reliability_report(lines["refcoco"], judged["refcoco"]).objects
    before = reliability_report([_uncalibrated(line) for line in lines["refcoco"]], judged["refcoco"]).objects
    scores = {name: each.scores for name, each in judged.items()}
    return Row(
        res_ciou=scores["refcoco"].ciou,
        res_acc_50=scores["refcoco"].acc_50,
        gres_giou=scores["grefcoco"].giou,
        gres_n_acc=scores["grefcoco"].n_acc,
        reason_giou=scores["reasonseg"].giou,
        malformed=sum(each.malformed for each in scores.values()) / len(everything),
        points_an_object=points / max(len(objects), 1),
        seconds_a_query=seconds / len(everything) if at_once else None,
        ece_before=None if before is None else before.ece,
        ece_after=None if after is None else after.ece,
    )


def _uncalibrated(line: PredictionLine) -> PredictionLine:
    """The line with the scores that a run which is not calibrated gives."""
    confidence = [item.confidence for item in line.objects if item.confidence is not None]
    scores, _ = scores_of(line.status, confidence, None)
    objects = tuple(replace(item, score=score) for item, score in zip(line.objects, scores, strict=True))
    return replace(line, objects=objects)


def table(rows: dict[str, Row]) -> list[str]:
    """The rows as Markdown, in percent but for points and seconds."""
    titles = "RES cIoU | Acc@0.5 | gRES gIoU | N-acc | Reason gIoU | malformed | points | s/query | ECE before | after"
    lines = [f"| | {titles} |", "|---" * 11 + "|"]
    for name, row in rows.items():
        percent = ["-" if value is None else f"{100 * value:.1f}" for value in asdict(row).values()]
        seconds = "-" if row.seconds_a_query is None else f"{row.seconds_a_query:.3f}"
        percent[6:8] = f"{row.points_an_object:.1f}", seconds
        lines.append(f"| {name} | {' | '.join(percent)} |")
    return lines


def run(options: argparse.Namespace) -> None:
    """The whole table, as far as it is not done already in `options.work`."""
    data = shapes_in(options.work, options.scenes, options.held_out)
    common = [*places(RECIPE, options.work, data), f"training.max_steps={options.steps}"]
    # All of the validation split, for the calibration is fitted to it.
    common += ["training.validate.every_steps=0", "training.validate.samples=100000", *options.overrides]
    samples = {
        name: [sample for split in splits for sample in read_dataset(name, data, split)]
        for name, splits in TESTS.items()
    }
    device = resolve_device(options.device)
    recipes = {name: load_recipe(RECIPE, [*common, *how]) for name, how in WAYS.items()}
    # Rows of other settings are other rows.
    digest = hashlib.sha256("".join(each.hash() for each in recipes.values()).encode()).hexdigest()[:12]
    kept = options.work / f"rows-{digest}.json"
    rows = {name: Row(**row) for name, row in (json.loads(kept.read_text()) if kept.is_file() else {}).items()}
    for name in WAYS:
        if name in rows or (options.only and name not in options.only):
            continue
        output = options.work / f"{name.replace(',', '').replace(' ', '-')}-{digest}"
        print(f"{name}: {options.steps} steps", file=sys.stderr, flush=True)
        trained = train(recipes[name].model_copy(update={"output": output}), device=device)
        rows[name] = measure(Pipeline.from_pretrained(trained.path, device=device), samples, output / "test")
        atomic_write_text(kept, json.dumps({name: asdict(row) for name, row in rows.items()}, indent=2) + "\n")
    if options.json is not None:
        record = {
            "settings": list(options.overrides),
            "scenes": [options.scenes, options.held_out],
            "steps": options.steps,
            "queries": {name: len(each) for name, each in samples.items()},
            "rows": {name: asdict(rows[name]) for name in WAYS if name in rows},
        }
        atomic_write_text(options.json, json.dumps(record, indent=2) + "\n")
    print("\n".join(table({name: rows[name] for name in WAYS if name in rows})))


def main(arguments: Sequence[str] | None = None) -> None:
    silence_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings that replace {RECIPE}'s")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each training")
    parser.add_argument("--scenes", type=int, default=160, help="training scenes (default: the demo's 160)")
    parser.add_argument("--held-out", type=int, default=40, help="scenes each for calibration and test (default: 40)")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="this way alone; may be given again")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, not rounded, to FILE")
    try:
        run(parser.parse_args(arguments))
    except Sam4mllmError as error:
        sys.exit(f"table_methods: error: {error}")


if __name__ == "__main__":
    main()
