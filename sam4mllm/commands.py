"""What each verb of the command line does: read the inputs, call one stage, print, and return the exit status.

Every function takes the verb's options and returns 0, or 1 when part of the work came out as errors. What they need is
imported late, so that a verb loads only what it uses. Of several processes that share a verb's work
(`options.processes`) the main one alone prints and writes figures. This module knows no algorithm.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.command_inputs import (
    chats_of,
    check_picture_places,
    entry_of,
    pipeline_of,
    samples_of,
    suite_of,
    targets_of,
    tell,
    write_json,
)
from sam4mllm.errors import DataError, RecipeError

if TYPE_CHECKING:
    from sam4mllm.recipe import Recipe


def demo(options: Namespace) -> int:
    """The whole way on what travels with the package."""
    from sam4mllm.demo import run_demo

    run_demo(options.output, full=options.full)
    return 0


def prepare(options: Namespace) -> int:
    """The targets of a recipe's training data."""
    from statistics import fmean

    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.recipe import load_recipe
    from sam4mllm.targets.winning import points_win
    from sam4mllm.train.method import needs_targets

    recipe = load_recipe(options.recipe, options.overrides)
    if not needs_targets(recipe):
        raise RecipeError(f"{options.recipe}: {recipe.method.name} teaches no targets of SAM's; go on with train")
    mixture = read_mixture(recipe.data, recipe.seed)
    store = targets_of(recipe, mixture.samples, options)
    if not options.processes.is_main:
        return 0
    targets = list(store.read().values())
    won = sum(map(points_win, targets))
    figures = {"store": str(store.path), "objects": len(targets), "skipped": len(store.skipped()), "points_win": won}
    means = {
        "iou_chosen": fmean(target.ious[0] for target in targets) if targets else None,
        "iou_box_alone": fmean(target.box_iou for target in targets) if targets else None,
        "iou_random_group": fmean(target.mean_iou for target in targets) if targets else None,
    }
    if options.json != "-":
        print("\n".join(mixture.leakage_lines()))
        print(f"{len(targets)} objects with a target, {figures['skipped']} without, in {store.path}")
        if targets:
            print("mean " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()))
            print(f"points beat the box for {won} of them ({won / len(targets):.0%})")
    write_json({**figures, **means}, options.json)
    return 0


def inspect(options: Namespace) -> int:
    """A page of what a recipe teaches, spread evenly over its training data.

    Only what is shown is computed. An object's targets depend on the object alone, so they are those of `prepare`.
    """
    from sam4mllm.data.mixture import read_mixture
    from sam4mllm.inspect import write_page
    from sam4mllm.progress import bar
    from sam4mllm.recipe import load_recipe
    from sam4mllm.targets.winning import as_taught
    from sam4mllm.train.dataset import spread
    from sam4mllm.train.method import method_of, needs_targets

    recipe = load_recipe(options.recipe, options.overrides)
    method = method_of(recipe)
    samples = spread(read_mixture(recipe.data, recipe.seed).samples, options.limit)
    store = targets_of(recipe, samples if needs_targets(recipe) else [], options)
    output = options.output or recipe.output / "inspect"
    with bar("draw", len(samples), unit="phrases") as advance:
        page = write_page(
            samples,
            as_taught(store.read(), only_winning=recipe.targets.only_winning),
            method,
            output,
            title=f"What {options.recipe} teaches",
            reasons=store.skipped(),
            advance=advance,
        )
    print(page)
    return 0


def train(options: Namespace) -> int:
    """A recipe's training, to the end of it; or a look at what it would do and need."""
    import logging

    from sam4mllm.recipe import load_recipe
    from sam4mllm.train.trainer import train as train_recipe

    if options.processes.is_main:
        log = logging.getLogger("sam4mllm")
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())
    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        return _dry_run(recipe, options)
    if options.json is not None or options.tflops is not None:
        raise DataError("--json and --tflops are about what a dry run finds; add --dry-run, or leave them out")
    run = train_recipe(recipe, device=options.device, processes=options.processes)
    if options.processes.is_main:
        print(f"{run.path}: trained; try `sam4mllm segment {run.path} PICTURE PHRASE -o out.png`")
    return 0


def _dry_run(recipe: Recipe, options: Namespace) -> int:
    from sam4mllm.train.dry_run import dry_run
    from sam4mllm.train.dry_run_report import as_text
    from sam4mllm.train.estimate import DEFAULT_TFLOPS

    if not options.processes.is_main:
        return 0
    found = dry_run(recipe, tflops=options.tflops or DEFAULT_TFLOPS)
    if options.json != "-":
        print(as_text(found), end="")
    write_json(found.to_json(), options.json)
    return 0


def shapes(options: Namespace) -> int:
    """The generated data set, to a folder."""
    from sam4mllm.data.shapes.writer import write_dataset

    write_dataset(options.directory, scenes=options.scenes, seed=options.seed)
    print(options.directory)
    return 0


def convert(options: Namespace) -> int:
    """Any data set of samples, as a JSONL of data of one's own."""
    from sam4mllm.data.jsonl import write_jsonl

    samples = samples_of(options)
    write_jsonl(samples, options.output)
    print(f"{options.output}: {len(samples)} phrases about {len({sample.image for sample in samples})} pictures")
    return 0


def doctor(options: Namespace) -> int:
    """The checks of families and segmenters; the status is 1 when one fails."""
    from sam4mllm.doctor.examine import examine
    from sam4mllm.doctor.report import any_failed, as_markdown, as_text

    record = examine(options.only, options.device)
    if options.json != "-":
        print(as_markdown(record) if options.markdown else as_text(record), end="")
    write_json(record, options.json)
    return 1 if any_failed(record["families"], record["segmenters"]) else 0


def segment(options: Namespace) -> int:
    """One picture and one phrase; the status is 1 when the model's answer could not be read."""
    from sam4mllm.data.fields import check_phrase
    from sam4mllm.data.images import load_image
    from sam4mllm.data.queries import Query
    from sam4mllm.predict.batch import line_of
    from sam4mllm.render import mask_image

    check_phrase(options.phrase, "PHRASE")
    picture = load_image(options.image)
    check_picture_places(options.output, options.mask)
    result = pipeline_of(options)(picture, options.phrase)
    if options.json != "-":
        objects = f"{len(result.prompts)} object{'' if len(result.prompts) == 1 else 's'}"
        said = {"ok": objects, "no_object": "no object", "malformed": f"malformed answer: {result.reason}"}
        print(f"{said[result.status]}\n{result.answer}")
    if options.output is not None:
        result.draw(picture, long_side=384).save(options.output)
    if options.mask is not None:
        mask_image(result.mask.cpu().numpy()).save(options.mask)
    if options.json is not None:
        write_json(line_of(Query("", options.image, options.phrase), result).to_json(), options.json)
    return 1 if result.status == "malformed" else 0


def predict(options: Namespace) -> int:
    """A file of queries, or those of a data set; the status is 1 when a line came out as an error."""
    from sam4mllm.data.queries import queries_of, read_queries
    from sam4mllm.predict.batch import predict as predict_all
    from sam4mllm.progress import bar

    if (options.queries is None) == (options.dataset is None):
        raise DataError("predict asks a QUERIES.jsonl, or a data set named by --dataset; give one of the two")
    queries = queries_of(samples_of(options)) if options.queries is None else read_queries(options.queries)
    pipeline = pipeline_of(options)
    processes = options.processes
    with bar("predict", len(queries), unit="phrases", shown=processes.is_main) as advance:
        summary = predict_all(pipeline, queries, options.output, advance=advance, processes=processes)
    if not processes.is_main:
        return 0
    tell(summary)
    write_json(summary.to_json(), options.json)
    return 1 if summary.error else 0


def evaluate(options: Namespace) -> int:
    """Splits of data sets, predicted and scored; the status is 1 when a line came out as an error."""
    import time

    from sam4mllm.evaluate.chat import chat_record, chat_report, score_chat
    from sam4mllm.evaluate.report import report_of
    from sam4mllm.evaluate.results import results_record, write_results
    from sam4mllm.evaluate.run import Judging, answer_split, judge_split, read_suite
    from sam4mllm.predict.chat import ask_chat

    start = time.perf_counter()
    suite = suite_of(options)
    judging = Judging(options.protocol, options.min_pixels, tuple(dict.fromkeys(options.baseline)), options.cases)
    samples = read_suite(suite, judging)
    chats = chats_of(options)
    home = Path(options.run) if Path(options.run).is_dir() else Path("runs") / Path(options.run).name
    output = options.output or suite.output(home)
    pipeline = pipeline_of(options)
    done = []
    for entry, folder, each in zip(suite.entries, suite.folders(output), samples, strict=True):
        answered = answer_split(pipeline, entry, each, folder, judging, options.processes)
        if options.processes.is_main:
            done.append(judge_split(answered, entry, each, judging))
            tell(done[-1].summary)
    if not options.processes.is_main:
        return 0
    answers = ask_chat(pipeline.engine, chats) if chats else {}
    chat_scores = {name: score_chat(pairs) for name, pairs in answers.items()}
    chat = {"chat": chat_record(options.chat, chat_scores)} if chats else {}
    record = chat | results_record(
        done,
        pipeline,
        judging,
        output,
        model=options.run,
        adapter=options.adapter,
        command=["sam4mllm", *options.arguments],
        seconds=time.perf_counter() - start,
    )
    place = write_results(record, output)
    print(f"{place}: the figures, and all that is needed to repeat them", file=sys.stderr)
    if options.json != "-":
        print(report_of(done, options.run, suite.named, suite.is_comparable(options.protocol)), end="")
        print(f"\nchat {options.chat}\n{chat_report(chat_scores)}" if chats else "", end="")
    write_json(done[0].scores.to_json() | chat if suite.named else record, options.json)
    return 1 if any(split.summary.error for split in done) else 0


def calibrate(options: Namespace) -> int:
    """A run's scores, fitted to its answers about a split; the status is 1 when a line came out as an error."""
    from sam4mllm.evaluate.calibrate import calibrate as calibrate_run
    from sam4mllm.train.run_folder import RunFolder

    entry, run = entry_of(options), RunFolder.open(options.run)
    found = calibrate_run(pipeline_of(options), run, entry, options.output, options.processes)
    if found is None:
        return 0
    tell(found.summary)
    if options.json != "-":
        print(found.text())
    write_json(found.to_json(), options.json)
    return 1 if found.summary.error else 0


def score(options: Namespace) -> int:
    """A file of predictions, from this or any other program."""
    from sam4mllm.data.queries import read_predictions
    from sam4mllm.data.readers import read_with_masks
    from sam4mllm.evaluate.report import report
    from sam4mllm.evaluate.score import score as score_predictions
    from sam4mllm.evaluate.suite import comparable

    entry = entry_of(options)
    samples = read_with_masks(entry)
    scores = score_predictions(
        read_predictions(options.predictions),
        samples,
        dataset=options.dataset,
        split=entry.split_name,
        protocol=options.protocol,
        min_pixels=options.min_pixels,
    )
    if options.json != "-":
        print(report({options.predictions.name: scores}, beside_published=comparable(entry, options.protocol)), end="")
    write_json(scores.to_json(), options.json)
    return 0


def merge(options: Namespace) -> int:
    """A run's model and adapter as one checkpoint."""
    from sam4mllm.predict.loading import chosen_device
    from sam4mllm.predict.merge import merge as merge_run
    from sam4mllm.train.run_folder import RunFolder

    device = chosen_device(options.device)
    merged = merge_run(RunFolder.open(options.run), options.output, dtype=options.dtype, device=device)
    print(f"{merged.path}: merged; try `vllm serve {merged.path}`, then `--server URL` of predict and evaluate")
    return 0
