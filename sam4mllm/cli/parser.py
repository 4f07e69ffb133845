"""The verbs of the command line, one per stage, with their options; and how a command line is read.

This module runs nothing and imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4mllm import __version__
from sam4mllm.cli.options import (
    Parser,
    above_zero,
    batch_option,
    dataset_options,
    device_option,
    dtype_option,
    json_option,
    model_options,
    nearest_to,
    positive,
    recipe_options,
    score_options,
    whole,
)

_ANSWERING = ("segment", "predict", "evaluate", "calibrate", "score")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each verb leaves its module and function there as `command`."""
    parser = Parser(
        prog="sam4mllm",
        description="Referring segmentation by talking: a multimodal LLM answers with a box and points, SAM turns them "
        "into masks.",
        epilog="Try it: sam4mllm demo, then: sam4mllm segment runs/demo IMAGE.jpg 'the red ring' -o out.png",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sam4mllm {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, short: str, detail: str = "") -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=short,
            description=f"{short[0].upper()}{short[1:]}. {detail}".strip(),
            formatter_class=argparse.HelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=("answer_commands" if name in _ANSWERING else "commands", name))
        return added

    demo = verb(
        "demo",
        "the whole way on the embedded data and models: targets, training, prediction, scores, images",
        "Downloads nothing. Leaves a run folder, scores.json and images.",
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    demo.add_argument("--full", action="store_true", help="also train and ask PQPP, six minutes more on two cores")

    prepare = verb(
        "prepare",
        "read the data sets, score point groups with SAM, store the targets",
        "Resumes where an earlier run stopped; an unchanged recipe computes nothing twice.",
    )
    recipe_options(prepare)
    device_option(prepare)
    json_option(prepare)

    inspect = verb(
        "inspect",
        "draw what will be taught: mask, box, chosen points, IoU, the exact text",
        "Writes a page (index.html) and one image per sample; prepares the targets of those samples if need be.",
    )
    recipe_options(inspect)
    inspect.add_argument("--output", type=Path, metavar="DIR", help="default: inspect/ in the recipe's output folder")
    inspect.add_argument("--limit", type=positive, default=60, metavar="N", help="samples on the page (default: 60)")
    device_option(inspect)

    train = verb(
        "train",
        "LoRA training; validates by mask IoU, not by loss alone",
        "Resumes from the last checkpoint in the recipe's output folder.",
    )
    recipe_options(train)
    device_option(train)
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="load no weights and write nothing: check recipe and data, show the first conversations, count tokens and "
        "steps, estimate memory and time",
    )
    train.add_argument(
        "--tflops",
        type=above_zero,
        metavar="N",
        help="TFLOP/s that the device sustains, for the estimate of time (default: 125, two fifths of an A100's 312)",
    )
    train.add_argument("--json", metavar="FILE", help="also write what the dry run found; - is standard output")

    segment = verb("segment", "segment one image", "Prints the answer, and writes the image with its masks.")
    model_options(segment)
    segment.set_defaults(batch_size=1)
    segment.add_argument("image", metavar="IMAGE", type=Path)
    segment.add_argument("phrase", metavar="PHRASE")
    segment.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="the image with masks and prompts")
    segment.add_argument("--mask", type=Path, metavar="FILE.png", help="the union of the masks alone, 0 and 255")
    segment.add_argument(
        "--json", metavar="FILE", help="the answer as one line of predictions.jsonl; - is standard output"
    )

    predict = verb(
        "predict",
        "segment many images",
        "Asks a file of queries, or all of a data set. Writes DIR/predictions.jsonl; resumes from whole shards. A bad "
        "input spoils one line; the exit status is 1.",
    )
    model_options(predict)
    predict.add_argument(
        "queries", metavar="QUERIES.jsonl", nargs="?", type=Path, help='lines of {"id", "image", "phrase"}'
    )
    dataset_options(predict, required=False)
    predict.add_argument("--output", required=True, type=Path, metavar="DIR")
    batch_option(predict)
    json_option(predict)

    evaluate = verb(
        "evaluate",
        "predict data sets' splits and score them, beside published results",
        "Resumes. --output keeps predictions, results.json and a page of the best, median and worst cases; with more "
        "than one named split, in a folder DATASET-SPLIT for each.",
    )
    model_options(evaluate)
    dataset_options(evaluate, several=True)
    score_options(evaluate)
    evaluate.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="also ask the questions of a chat file, of the tuned model and of its base, and tell how many answers are "
        "right",
    )
    evaluate.add_argument(
        "--chat-images", type=Path, metavar="DIR", help="folder of the chat file's images, where it is not the file's"
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: evaluate/ in the run folder (or in runs/), and in it DATASET-SPLIT where one split is named",
    )
    evaluate.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=("box", "filled-box"),
        help="a row more, from the same answers: SAM with their boxes alone, or the boxes filled; may be repeated",
    )
    evaluate.add_argument(
        "--cases",
        type=whole,
        default=8,
        metavar="N",
        help="best, median and worst cases on the page, each (default: 8; 0: no page)",
    )
    evaluate.add_argument("--limit", type=positive, metavar="N", help="only the first N; no figure to publish")
    batch_option(evaluate)
    json_option(evaluate)

    calibrate = verb(
        "calibrate",
        "fit a run's scores to its answers about a held-out split, as training does to its validation's",
        "Resumes. Writes RUN/calibration.json, which all later answers are scored by.",
    )
    calibrate.add_argument("run", metavar="RUN", help="a run folder")
    # As the run will answer; scores of other answers are none of its calibration's.
    device_option(calibrate)
    dtype_option(calibrate)
    calibrate.set_defaults(adapter=None, segmenter=None, server=None, server_model=None)
    calibrate.set_defaults(fallback_margin=None, fallback_outside=None)
    dataset_options(calibrate)
    calibrate.add_argument("--output", type=Path, metavar="DIR", help="default: calibration/DATASET-SPLIT in RUN")
    calibrate.add_argument("--limit", type=positive, metavar="N", help="only the first N phrases")
    batch_option(calibrate)
    json_option(calibrate)

    score = verb("score", "score a file of predictions, from this or any other program")
    score.add_argument("predictions", metavar="PREDICTIONS.jsonl", type=Path)
    dataset_options(score)
    score_options(score)
    json_option(score)

    convert = verb(
        "convert",
        "write any data set that can be read as one JSONL, the format of data of your own",
        "Images are not copied: the file names them where they are, relative to its folder if they are in it.",
    )
    dataset_options(convert)
    convert.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.jsonl")
    convert.add_argument("--limit", type=positive, metavar="N", help="only the first N phrases")

    merge = verb(
        "merge",
        "write a run's model with its adapter merged into it, for servers",
        "The folder loads as any checkpoint does, and in RUN's place in all other verbs.",
    )
    merge.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    merge.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    dtype_option(merge)
    device_option(merge)

    doctor = verb(
        "doctor",
        "check this machine: libraries, device, and every family and segmenter on small random models",
        "Downloads nothing. The exit status is 1 when a check fails; what does not apply here (n/a) is no failure.",
    )
    doctor.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a model type such as qwen3_vl, or `families`, or `segmenters`; may be given several times",
    )
    device_option(doctor)
    doctor.add_argument("--markdown", action="store_true", help="print the tables as Markdown, as in docs/families.md")
    json_option(doctor)

    shapes = verb("shapes", "write the generated data set to a folder, in the real formats")
    shapes.add_argument("directory", metavar="DIR", type=Path)
    shapes.add_argument("--scenes", type=positive, default=200, metavar="N", help="training scenes (default: 200)")
    shapes.add_argument("--seed", type=whole, default=0, metavar="N", help="default: 0")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; a mistyped verb or option ends the program with the nearest right one."""
    parser = build_parser()
    assert isinstance(parser, Parser)
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    given = next((argument for argument in arguments if not argument.startswith("-")), None)
    if given is not None and given not in verbs:
        parser.error(f"unknown verb {given!r}{nearest_to(given, list(verbs))}")
    options, rest = parser.parse_known_args(arguments)
    if "overrides" in options:
        # argparse ends a list of positionals at the first option; those after it belong to the list as well.
        options.overrides += [argument for argument in rest if not argument.startswith("-")]
        rest = [argument for argument in rest if argument.startswith("-")]
    options.arguments = list(arguments)
    if rest:
        used = verbs[options.verb]
        used.error(f"unknown argument {rest[0]!r}{nearest_to(rest[0].partition('=')[0], used.known_options())}")
    return options
