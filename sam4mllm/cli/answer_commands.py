"""What the verbs that ask a model, and judge its answers, do; as in `commands.py`, whose rules are the same here."""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

from sam4mllm.cli.inputs import (
    DATA_OPTIONS,
    chats_of,
    check_image_places,
    check_not_read,
    entry_of,
    pipeline_of,
    samples_of,
    suite_of,
    tell,
    write_json,
)
from sam4mllm.errors import DataError

LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Endings of the formats that keep every pixel as it is."""


def segment(options: Namespace) -> int:
    """One image and one phrase; the status is 1 when the model's answer could not be read."""
    from sam4mllm.data.fields import check_not_empty, check_phrase
    from sam4mllm.data.images import load_image
    from sam4mllm.data.predictions import Query
    from sam4mllm.pipeline.lines import line_of
    from sam4mllm.viz.drawing import mask_image

    check_phrase(check_not_empty(options.phrase, "PHRASE"), "PHRASE")
    image = load_image(options.image)
    check_image_places(options.output, options.mask)
    for place in (options.output, options.mask):
        check_not_read(place, options.image, "is the image that is asked about; give another file")
    if options.mask is not None and options.mask.suffix.lower() not in LOSSLESS:
        raise DataError(f"{options.mask}: would not keep a mask's 0 and 255; take .png")
    result = pipeline_of(options)(image, options.phrase)
    if options.json != "-":
        objects = f"{len(result.prompts)} object{'' if len(result.prompts) == 1 else 's'}"
        said = {"ok": objects, "no_object": "no object", "malformed": f"malformed answer: {result.reason}"}
        print(f"{said[result.status]}\n{result.answer}")
    if options.output is not None:
        result.draw(image, long_side=384).save(options.output)
    if options.mask is not None:
        mask_image(result.mask.cpu().numpy()).save(options.mask)
    if options.json is not None:
        write_json(line_of(Query("", options.image, options.phrase), result).to_json(), options.json)
    return 1 if result.status == "malformed" else 0


def predict(options: Namespace) -> int:
    """A file of queries, or those of a data set; the status is 1 when a line came out as an error."""
    from sam4mllm.data.predictions import queries_of, read_queries
    from sam4mllm.pipeline.batch import predict as predict_all
    from sam4mllm.utils.progress import bar

    if (options.queries is None) == (options.dataset is None):
        raise DataError("predict asks a QUERIES.jsonl, or a data set named by --dataset; give one of the two")
    if options.queries is not None and (given := [name for name in DATA_OPTIONS if getattr(options, name, None)]):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DataError(f"{named}: belongs to a data set, and {options.queries} is none; leave it out")
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

    from sam4mllm.evaluate.ask_chat import ask_chat
    from sam4mllm.evaluate.chat import chat_record, chat_report, score_chat
    from sam4mllm.evaluate.evaluate import EvalSettings, predict_split, read_suite, score_split
    from sam4mllm.evaluate.report import report_of
    from sam4mllm.evaluate.results import results_record, write_results

    start = time.perf_counter()
    suite = suite_of(options)
    judging = EvalSettings(options.protocol, options.min_pixels, tuple(dict.fromkeys(options.baseline)), options.cases)
    samples = read_suite(suite, judging)
    chats = chats_of(options)
    home = Path(options.run) if Path(options.run).is_dir() else Path("runs") / Path(options.run).name
    output = options.output or suite.output(home)
    pipeline = pipeline_of(options)
    done = []
    for entry, folder, each in zip(suite.entries, suite.folders(output), samples, strict=True):
        answered = predict_split(pipeline, entry, each, folder, judging, options.processes)
        if options.processes.is_main:
            done.append(score_split(answered, entry, each, judging))
            tell(done[-1].summary)
    answers = ask_chat(pipeline.engine, chats, options.processes) if chats else {}
    if not options.processes.is_main:
        return 0
    chat_scores = {name: score_chat(pairs) for name, pairs in answers.items()}
    chat = {"chat": chat_record(options.chat, chat_scores)} if chats else {}
    told = partial(
        results_record,
        pipeline=pipeline,
        judging=judging,
        model=options.run,
        adapter=options.adapter,
        command=["sam4mllm", *options.arguments],
    )
    # Each split's own too: the next command may name other splits, and the file of all is about those alone.
    for split, folder in zip(done, suite.folders(output), strict=True):
        write_results(told([split], home=folder, seconds=split.seconds), folder)
    record = chat | told(done, home=output, seconds=time.perf_counter() - start)
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
    from sam4mllm.runs.run_folder import RunFolder

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
    from sam4mllm.data.predictions import read_predictions
    from sam4mllm.data.registry import read_with_masks
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
