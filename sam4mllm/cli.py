"""The command line: one verb per stage. Here are its options, and how errors and interruptions end the program.

Nothing heavy is imported before a verb runs, so that `--help` answers at once. What a verb does lies in `commands.py`.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from sam4mllm import __version__
from sam4mllm.errors import DataError, LaunchError, Sam4mllmError
from sam4mllm.processes import joined

DATASETS = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "shapes", "jsonl", "coco", "hub")

SHARED_VERBS = ("prepare", "train", "predict", "evaluate")
"""Those whose work several processes can share: `torchrun --nproc-per-node N -m sam4mllm VERB ...`."""

_ROOT_HELP = (
    "folder that holds refcoco/refs(unc).p and instances.json, grefcoco/, ReasonSeg/ and "
    "images/mscoco/images/train2014/"
)
_JSON_HELP = "also write the figures to FILE as one JSON object; - is standard output"


class _Parser(argparse.ArgumentParser):
    """argparse's parser with one line per error, and the nearest name for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        verb = self.prog.partition(" ")[2]
        see = f"sam4mllm {verb} --help".replace("  ", " ")
        self.exit(2, f"sam4mllm: error: {message} (see `{see}`)\n")

    def known_options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or a base model (a folder, a Hub id, or `shapes`)")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter for a base model")
    parser.add_argument(
        "--segmenter",
        metavar="CHECKPOINT",
        help="SAM checkpoint (.pth, folder, Hub id or `shapes`); default: the run's",
    )
    _device_option(parser)
    _dtype_option(parser)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="an OpenAI-compatible server (vLLM, SGLang, transformers serve) that answers in place of RUN's model",
    )
    parser.add_argument("--server-model", metavar="NAME", help="its name for the model; default: the only one it has")


def _dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's"
    )


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def _dataset_options(parser: argparse.ArgumentParser, *, several: bool = False, required: bool = True) -> None:
    """Where a data set is; what each of them needs is checked with the rest of a recipe's data entry."""
    if several:
        parser.add_argument(
            "--dataset",
            required=True,
            action="append",
            choices=(*DATASETS, "all"),
            help="which data set; may be repeated; all: every benchmark that the root holds; jsonl, coco and hub are "
            "data of your own",
        )
        parser.add_argument(
            "--split",
            action="append",
            default=[],
            help="val, testA, testB, test ...; may be repeated; default: every split that is not for training",
        )
    else:
        parser.add_argument(
            "--dataset",
            required=required,
            choices=DATASETS,
            help="which data set; jsonl, coco and hub are data of your own",
        )
        parser.add_argument("--split", help="val, testA, testB, test ...")
    parser.add_argument("--root", type=Path, metavar="DIR", help=_ROOT_HELP)
    parser.add_argument(
        "--path",
        type=Path,
        metavar="FILE",
        help="data of your own, in place of --root and --split: the JSONL, COCO's instances, or the folder of a data "
        "set of `datasets`",
    )
    parser.add_argument("--phrases", type=Path, metavar="FILE", help="for coco: the file of phrases")
    parser.add_argument(
        "--column",
        action="append",
        metavar="OURS=THEIRS",
        help="for hub: the column of image, phrase, masks, boxes, id",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the pictures, where it is not the usual one"
    )
    parser.add_argument("--split-by", metavar="NAME", help="whose split: refs(NAME).p; default: unc, for refcocog umd")


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=("refcoco", "grefcoco", "reasonseg"),
        help="default: the data set's own, as published; grefcoco for data of your own",
    )
    parser.add_argument(
        "--min-pixels", type=_positive, default=1, metavar="N", help="a smaller mask counts as no target (default: 1)"
    )


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that travels with sam4mllm"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's: training.max_steps=100"
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help=_JSON_HELP)


def _batch_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="questions generated at once (default: the run's)"
    )


def _positive(text: str) -> int:
    """A whole number of at least 1; argparse turns the ValueError into its message."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more; got {text}")
    return value


def _whole(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more; got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each verb leaves the name of its function in `commands.py` as `command`."""
    parser = _Parser(
        prog="sam4mllm",
        description="Referring segmentation by talking: a multimodal LLM answers with a box and points, SAM turns them "
        "into masks.",
        epilog="Try it: sam4mllm demo, then: sam4mllm segment runs/demo PICTURE.jpg 'the red ring' -o out.png",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sam4mllm {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, short: str, detail: str = "") -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=short,
            description=f"{short[0].upper()}{short[1:]}. {detail}".strip(),
            formatter_class=argparse.HelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=name)
        return added

    demo = verb(
        "demo",
        "the whole way on the embedded data and models: targets, training, prediction, scores, pictures",
        "Downloads nothing. Leaves a run folder, scores.json and pictures.",
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")

    prepare = verb(
        "prepare",
        "read the data sets, score point groups with SAM, store the targets",
        "Resumes where an earlier run stopped; an unchanged recipe computes nothing twice.",
    )
    _recipe_options(prepare)
    _device_option(prepare)
    _json_option(prepare)

    inspect = verb(
        "inspect",
        "draw what will be taught: mask, box, chosen points, IoU, the exact text",
        "Writes a page (index.html) and one picture per sample; prepares the targets of those samples if need be.",
    )
    _recipe_options(inspect)
    inspect.add_argument("--output", type=Path, metavar="DIR", help="default: inspect/ in the recipe's output folder")
    inspect.add_argument("--limit", type=_positive, default=60, metavar="N", help="samples on the page (default: 60)")
    _device_option(inspect)

    train = verb(
        "train",
        "LoRA training; validates by mask IoU, not by loss alone",
        "Resumes from the last checkpoint in the recipe's output folder.",
    )
    _recipe_options(train)
    _device_option(train)

    segment = verb("segment", "segment one picture", "Prints the answer, and writes the picture with its masks.")
    _model_options(segment)
    segment.set_defaults(batch_size=1)
    segment.add_argument("image", metavar="IMAGE", type=Path)
    segment.add_argument("phrase", metavar="PHRASE")
    segment.add_argument(
        "-o", "--output", type=Path, metavar="FILE.png", help="the picture with masks, boxes and points"
    )
    segment.add_argument("--mask", type=Path, metavar="FILE.png", help="the union of the masks alone, 0 and 255")
    segment.add_argument(
        "--json", metavar="FILE", help="the answer as one line of predictions.jsonl; - is standard output"
    )

    predict = verb(
        "predict",
        "segment many pictures",
        "Asks a file of queries, or all of a data set. Writes DIR/predictions.jsonl; resumes from whole shards. A bad "
        "input spoils one line; the exit status is 1.",
    )
    _model_options(predict)
    predict.add_argument(
        "queries", metavar="QUERIES.jsonl", nargs="?", type=Path, help='lines of {"id", "image", "phrase"}'
    )
    _dataset_options(predict, required=False)
    predict.add_argument("--output", required=True, type=Path, metavar="DIR")
    _batch_option(predict)
    _json_option(predict)

    evaluate = verb(
        "evaluate",
        "predict data sets' splits and score them, beside published results",
        "Resumes. --output keeps predictions, results.json and a page of the best, median and worst cases; with more "
        "than one named split, in a folder DATASET-SPLIT for each.",
    )
    _model_options(evaluate)
    _dataset_options(evaluate, several=True)
    _score_options(evaluate)
    evaluate.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="also ask the questions of a chat file, of the tuned model and of its base, and tell how many answers are "
        "right",
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
        type=_whole,
        default=8,
        metavar="N",
        help="best, median and worst cases on the page, each (default: 8; 0: no page)",
    )
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N sentences; no figure to publish"
    )
    _batch_option(evaluate)
    _json_option(evaluate)

    score = verb("score", "score a file of predictions, from this or any other program")
    score.add_argument("predictions", metavar="PREDICTIONS.jsonl", type=Path)
    _dataset_options(score)
    _score_options(score)
    _json_option(score)

    convert = verb(
        "convert",
        "write any data set that can be read as one JSONL, the format of data of your own",
        "Pictures are not copied: the file names them where they are, relative to its folder if they are in it.",
    )
    _dataset_options(convert)
    convert.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.jsonl")
    convert.add_argument("--limit", type=_positive, metavar="N", help="only the first N phrases")

    merge = verb(
        "merge",
        "write a run's model with its adapter merged into it, for servers",
        "The folder loads as any checkpoint does, and in RUN's place in all other verbs.",
    )
    merge.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    merge.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    _dtype_option(merge)
    _device_option(merge)

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
    _device_option(doctor)
    doctor.add_argument("--markdown", action="store_true", help="print the tables as Markdown, as in docs/families.md")
    _json_option(doctor)

    shapes = verb("shapes", "write the generated data set to a folder, in the real formats")
    shapes.add_argument("directory", metavar="DIR", type=Path)
    shapes.add_argument("--scenes", type=_positive, default=200, metavar="N", help="training scenes (default: 200)")
    shapes.add_argument("--seed", type=_whole, default=0, metavar="N", help="default: 0")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; a mistyped verb or option ends the program with the nearest right one."""
    parser = build_parser()
    assert isinstance(parser, _Parser)
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    given = next((argument for argument in arguments if not argument.startswith("-")), None)
    if given is not None and given not in verbs:
        parser.error(f"unknown verb {given!r}{_nearest(given, list(verbs))}")
    options, rest = parser.parse_known_args(arguments)
    if "overrides" in options:
        # argparse ends a list of positionals at the first option; those after it belong to the list as well.
        options.overrides += [argument for argument in rest if not argument.startswith("-")]
        rest = [argument for argument in rest if argument.startswith("-")]
    options.arguments = list(arguments)
    if rest:
        used = verbs[options.verb]
        used.error(f"unknown argument {rest[0]!r}{_nearest(rest[0].partition('=')[0], used.known_options())}")
    return options


def _check_json_place(place: str | None) -> None:
    """Makes sure, before any work is done, that there is a folder for the file of `--json`."""
    if place not in (None, "-") and not Path(place).absolute().parent.is_dir():
        raise DataError(f"{place}: its folder {Path(place).parent} does not exist; make it first")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit status: 0, or 1 when some lines came out as errors, 2 for what the user can mend, 130 when interrupted.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # It tells of kernels that it would like to have, even where nothing is quantised.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Without a network it tells of every one of its retries; our error says it once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        _check_json_place(getattr(options, "json", None))
        with joined() as options.processes:
            if options.processes.world_size > 1 and options.verb not in SHARED_VERBS:
                raise LaunchError(
                    f"{options.verb} runs in one process; only {', '.join(SHARED_VERBS)} share their work"
                )
            return int(getattr(import_module("sam4mllm.commands"), options.command)(options))
    except Sam4mllmError as error:
        if options.traceback:
            raise
        print(f"sam4mllm: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("sam4mllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); not even the interpreter's own flush has anywhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A full disk, a folder that may not be written: the machine's, not ours.
        if options.traceback:
            raise
        print(f"sam4mllm: error: {error}", file=sys.stderr)
        return 2
