"""`evaluate`, `score` and `calibrate`: subcommands that compare answers with annotated masks."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.cli.options import (
    Subcommand,
    add_batch_option,
    add_dataset_options,
    add_device_option,
    add_dtype_option,
    add_json_option,
    add_limit_option,
    add_model_options,
    add_score_options,
    data_entry,
    load_pipeline,
    non_negative_int,
)
from sam4mllm.cli.output import STDOUT, print_summary, write_json
from sam4mllm.errors import DataError

if TYPE_CHECKING:
    from sam4mllm.data.readers.chat import Dialogue
    from sam4mllm.evaluate.suite import Suite


def _evaluate_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    add_dataset_options(parser, several=True)
    add_score_options(parser)
    parser.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="also ask the questions of a chat file, to the tuned model and to its base, and report how many answers "
        "are right",
    )
    parser.add_argument(
        "--chat-images", type=Path, metavar="DIR", help="folder of the chat file's images, if it is not the file's own"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: evaluate/ in the run folder (or in runs/), with a subfolder DATASET-SPLIT if one split is named",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=("box", "filled-box"),
        help="add a row computed from the same answers: SAM with their boxes alone, or the boxes filled; may be "
        "repeated",
    )
    parser.add_argument(
        "--cases",
        type=non_negative_int,
        default=8,
        metavar="N",
        help="number of best, of median and of worst cases on the page (default: 8; 0: no page)",
    )
    add_limit_option(parser, "use only the first N phrases; the figures are not comparable with published ones")
    add_batch_option(parser)
    add_json_option(parser)


def _evaluate(options: Namespace) -> int:
    """Predict and score splits of data sets; the exit status is 1 when a query has status "error"."""
    import time

    from sam4mllm.evaluate.ask_chat import ask_chat
    from sam4mllm.evaluate.chat import chat_record, chat_report, score_chat
    from sam4mllm.evaluate.evaluate import EvalSettings, predict_split, read_suite, score_split
    from sam4mllm.evaluate.report import report_of
    from sam4mllm.evaluate.results import results_record, write_results

    start = time.perf_counter()
    suite = _suite(options)
    judging = EvalSettings(options.protocol, options.min_pixels, tuple(dict.fromkeys(options.baseline)), options.cases)
    samples = read_suite(suite, judging)
    chats = _dialogues(options)
    home = Path(options.run) if Path(options.run).is_dir() else Path("runs") / Path(options.run).name
    output = options.output or suite.output(home)
    pipeline = load_pipeline(options)
    done = []
    for entry, folder, each in zip(suite.entries, suite.folders(output), samples, strict=True):
        answered = predict_split(pipeline, entry, each, folder, judging, options.processes)
        if options.processes.is_main:
            done.append(score_split(answered, entry, each, judging))
            print_summary(done[-1].summary)
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
    if options.json != STDOUT:
        print(report_of(done, options.run, suite.named, suite.is_comparable(options.protocol)), end="")
        print(f"\nchat {options.chat}\n{chat_report(chat_scores)}" if chats else "", end="")
    write_json(done[0].scores.to_json() | chat if suite.named else record, options.json)
    return 1 if any(split.summary.error for split in done) else 0


def _suite(options: Namespace) -> Suite:
    from sam4mllm.data.registry import dataset_names
    from sam4mllm.evaluate.suite import Suite, choose_suite

    own = set(options.dataset).intersection(dataset_names("custom"))
    if own and (len(options.dataset) > 1 or len(options.split) > 1):
        raise DataError(f"{min(own)} is evaluated alone; give one --dataset and at most one --split")
    if own:
        single = {"dataset": options.dataset[0], "split": options.split[0] if options.split else None}
        return Suite((data_entry(Namespace(**{**vars(options), **single})),), named=True)
    if options.root is None:
        raise DataError(f"--root: is missing; {', '.join(options.dataset)} needs the folder of the data sets' folders")
    for key in ("path", "phrases", "column"):
        if getattr(options, key) is not None:
            raise DataError(f"--{key}: has no meaning for {', '.join(options.dataset)}; give --root and --split")
    return choose_suite(
        options.dataset,
        options.split,
        options.root,
        images=options.images,
        split_by=options.split_by,
        limit=options.limit,
    )


def _dialogues(options: Namespace) -> list[Dialogue]:
    """Read the chat file of the options, before any work is done."""
    from sam4mllm.data.entry import DataEntry
    from sam4mllm.data.reading import read_dialogues

    if options.chat is None:
        if options.chat_images is not None:
            raise DataError("--chat-images: has no meaning without --chat; name the chat file")
        return []
    return read_dialogues(DataEntry(dataset="chat", path=options.chat, images=options.chat_images))


def _score_options(parser: ArgumentParser) -> None:
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl", type=Path)
    add_dataset_options(parser)
    add_score_options(parser)
    add_json_option(parser)


def _score(options: Namespace) -> int:
    from sam4mllm.data.predictions import read_predictions
    from sam4mllm.data.reading import read_with_masks
    from sam4mllm.evaluate.report import report
    from sam4mllm.evaluate.score import score as score_predictions
    from sam4mllm.evaluate.suite import comparable

    entry = data_entry(options)
    samples = read_with_masks(entry)
    scores = score_predictions(
        read_predictions(options.predictions),
        samples,
        dataset=options.dataset,
        split=entry.split_name,
        protocol=options.protocol,
        min_pixels=options.min_pixels,
    )
    if options.json != STDOUT:
        print(report({options.predictions.name: scores}, beside_published=comparable(entry, options.protocol)), end="")
    write_json(scores.to_json(), options.json)
    return 0


def _calibrate_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    add_device_option(parser)
    add_dtype_option(parser)
    # A calibration is fitted to the answers that the run gives by default, so no option changes them.
    parser.set_defaults(adapter=None, segmenter=None, server=None, server_model=None)
    parser.set_defaults(fallback_margin=None, fallback_outside=None)
    add_dataset_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: calibration/DATASET-SPLIT in RUN")
    add_limit_option(parser)
    add_batch_option(parser)
    add_json_option(parser)


def _calibrate(options: Namespace) -> int:
    """Fit a run's calibration to its answers about a split; the exit status is 1 when a query has status "error"."""
    from sam4mllm.evaluate.calibrate import calibrate
    from sam4mllm.runs.run_folder import RunFolder

    entry, run = data_entry(options), RunFolder.open(options.run)
    calibrated = calibrate(load_pipeline(options), run, entry, options.output, options.processes)
    if calibrated is None:
        return 0
    print_summary(calibrated.summary)
    if options.json != STDOUT:
        print(calibrated.text())
    write_json(calibrated.to_json(), options.json)
    return 1 if calibrated.summary.error else 0


EVALUATE = Subcommand(
    "evaluate",
    "predict and score splits of data sets, and print published results beside the figures",
    _evaluate_options,
    _evaluate,
    detail="Resumes. --output holds predictions, results.json and a page of the best, median and worst cases; with "
    "more than one named split, in a subfolder DATASET-SPLIT for each.",
    distributed=True,
    resumes=True,
)

SCORE = Subcommand(
    "score",
    "score a file of predictions, made by this or any other program",
    _score_options,
    _score,
)

CALIBRATE = Subcommand(
    "calibrate",
    "calibrate the confidence scores of a run on a held-out split, as training does on its validation split",
    _calibrate_options,
    _calibrate,
    detail="Resumes. Writes RUN/calibration.json, which all later scores of the run are computed with.",
    distributed=True,
    resumes=True,
)
